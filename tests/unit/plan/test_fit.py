"""Calibration on runs that the planner itself made with known constants: they must come back."""

import builtins
import csv
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from moesaic.cli import app
from moesaic.errors import PlanError
from moesaic.plan.fit import Free, fit, log_ratios, residual_sigma
from moesaic.plan.published import COLUMNS, Trial, question
from moesaic.plan.runs import fit_runs, read_runs, write_stacks
from moesaic.plan.stack import Stack, stack, stacks

FIELDS = ("model", "device", "n_devices", "tp", "pp", "dp", "vpp", "micro_batch", "recompute", "zero", "ep")
FIELDS += ("seq_len", "global_batch_seqs", "precision", "metric", "unit", "value")
RUNS = (  # model, devices, tp, pp, dp, vpp, micro-batch, zero, ep, context, batch
    ("llama-3-8b", 64, 1, 1, 64, "", 1, 3, "", 4096, 128),
    ("llama-3-8b", 256, 1, 1, 256, "", 1, 3, "", 1024, 256),
    ("llama-3-70b", 128, 8, 4, 4, 5, 1, 1, "", 8192, 128),
    ("llama-3-70b", 512, 8, 4, 16, 5, 1, 1, "", 4096, 256),
    ("llama-3-70b", 256, 1, 1, 256, "", 1, 3, "", 1024, 256),
    ("llama-3-8b", 16, 8, 1, 2, "", 2, 1, "", 8192, 64),
    ("mixtral-8x7b", 64, 1, 4, 16, 8, 1, 1, 8, 4096, 256),
    ("llama-3-70b", 1024, 8, 4, 32, 5, 1, 1, "", 8192, 512),
)  # fmt: skip


def made(using: Stack, runs: Sequence[tuple[Any, ...]] = RUNS) -> list[dict[str, str]]:
    """Runs as `using` would time them."""
    out = []
    for model, n, tp, pp, dp, vpp, micro, zero, ep, context, batch in runs:
        told = (
            model,
            "h100",
            n,
            tp,
            pp,
            dp,
            vpp,
            micro,
            "selective",
            zero,
            ep,
            context,
            batch,
            "bf16",
            "iter_time",
            "s",
            1,
        )
        row = dict(zip(FIELDS, map(str, told), strict=True))
        asked = question({**dict.fromkeys(COLUMNS, ""), "id": "made", "category": "train", **row}, name=using.name)
        assert isinstance(asked, Trial), asked
        out.append({**row, "value": f"{asked.best(using)[1]:.5g}"})
    return out


def save(path: Path, runs: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(runs)
    return path


def slower() -> Stack:
    base = stack("megatron-core")
    return replace(base, pace=1.3, network=0.5 * base.network)


def test_pace_and_network_of_made_runs_are_recovered(tmp_path: Path) -> None:
    found = fit_runs(save(tmp_path / "runs.csv", made(slower())))
    mine = found.table["stack"]["mine"]
    assert mine["pace"] == pytest.approx(1.3, rel=0.05)
    assert mine["network"] == pytest.approx(slower().network, rel=0.15)
    assert np.abs(np.expm1(found.before)).mean() > 0.2
    assert np.abs(np.expm1(found.after)).mean() < 0.02
    assert mine["sigma"] < stack("megatron-core").sigma


def test_few_runs_move_the_pace_only_and_an_outlier_does_not_ruin_it(tmp_path: Path) -> None:
    runs = made(slower(), RUNS[:3])
    pace = replace(stack("megatron-core"), pace=1.2)
    found = fit_runs(save(tmp_path / "three.csv", made(pace, RUNS[:3])))
    assert [f.path[-1] for f in found.free] == ["pace"]
    assert found.table["stack"]["mine"]["pace"] == pytest.approx(1.2, rel=0.03)
    spoilt = [*made(pace), {**runs[0], "value": str(10 * float(runs[0]["value"]))}]
    assert fit_runs(save(tmp_path / "spoilt.csv", spoilt)).table["stack"]["mine"]["pace"] == pytest.approx(1.2, rel=0.1)
    assert fit_runs(save(tmp_path / "one.csv", made(pace)[:1])).table["stack"]["mine"]["pace"] == pytest.approx(
        1.2, rel=0.05
    )


def test_the_file_is_one_that_every_verb_takes(tmp_path: Path) -> None:
    found = fit_runs(save(tmp_path / "runs.csv", made(slower(), RUNS[:3])), "fsdp", "ours")
    out = tmp_path / "ours.toml"
    write_stacks(out, found)
    again = stacks(out)
    assert set(again) == {*stacks(), "ours"}
    assert again["fsdp"] == stacks()["fsdp"]
    assert again["ours"].pace == found.table["stack"]["ours"]["pace"] != stack("fsdp").pace
    assert again["ours"].exposed_zero3 == stack("fsdp").exposed_zero3
    assert tomllib.loads(out.read_text())["stack"]["ours"]["source"] == "runs.csv"
    second = fit_runs(tmp_path / "runs.csv", "ours", "again", out)  # starting from a profile of one's own
    assert second.table["stack"]["again"]["pace"] == pytest.approx(again["ours"].pace, rel=0.02)


def test_a_model_may_be_a_config_beside_the_runs(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    }
    import json

    (tmp_path / "ours.json").write_text(json.dumps(config))
    run = {**made(slower(), RUNS[:1])[0], "model": "ours.json"}
    (trial,) = read_runs(save(tmp_path / "runs.csv", [run]), "mine")
    assert trial.shape.total_parameters == pytest.approx(8.03e9, rel=0.01)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("value", "fast", "row line 3: value = 'fast'"),
        ("value", "-3", "row line 3: value = '-3'"),
        ("tp", "two", "row line 3: tp = 'two'"),
        ("dp", "", "row line 3: dp is empty"),
        ("metric", "joy", "row line 3: metric = 'joy'"),
        ("device", "abacus", "row line 3: no device 'abacus'"),
        ("model", "nobody-1b", "row line 3: model: no model 'nobody-1b'"),
        ("value", "1e-6", "row line 3: iter_time = 1e-6"),  # far above the peak
        ("n_devices", "63", "row line 3: TP x PP x CP x DP = 256 and not the 63"),
    ],
)
def test_a_bad_cell_names_row_and_column(tmp_path: Path, column: str, cell: str, said: str) -> None:
    runs = made(slower(), RUNS[:2])
    file = save(tmp_path / "runs.csv", [runs[0], {**runs[1], column: cell}])
    with pytest.raises(PlanError) as caught:
        read_runs(file, "mine")
    assert str(caught.value).startswith(said)
    run = CliRunner().invoke(app, ["plan", "fit", str(file)])
    assert run.exit_code != 0


def test_the_verb_writes_only_when_asked(tmp_path: Path) -> None:
    file, out = save(tmp_path / "runs.csv", made(slower(), RUNS[:3])), tmp_path / "mine.toml"
    run = CliRunner().invoke(app, ["plan", "fit", str(file), "--stack", "fsdp"])
    assert run.exit_code == 0, run.output
    assert "Nothing was written" in run.output
    run = CliRunner().invoke(app, ["plan", "fit", str(file), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "--stacks" in run.output
    assert out.exists()
    for wrong in (
        ["--stack", "nobody"],
        ["--name", "fsdp"],
        ["--name", "a b"],
        ["--out", str(tmp_path / "no" / "x.toml")],
    ):
        assert CliRunner().invoke(app, ["plan", "fit", str(file), *wrong]).exit_code != 0


def test_without_scipy_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PlanError, match=r"pip install 'moesaic\[fit\]'"):
        fit_runs(save(tmp_path / "runs.csv", made(slower(), RUNS[:1])))


def test_a_prior_holds_what_no_run_speaks_of() -> None:
    """A run on one device says nothing of the network; what it says of the pace is weighed against the prior."""
    rows = made(replace(stack("megatron-core"), pace=1.5), [("llama-3-8b", 1, 1, 1, 1, "", 1, 1, "", 2048, 4)])
    base = {"id": "one", "category": "train", **rows[0]}
    asked = question({**dict.fromkeys(COLUMNS, ""), **base}, name="megatron-core")
    assert isinstance(asked, Trial)
    from importlib.resources import files

    table = tomllib.loads(files("moesaic.plan").joinpath("stacks.toml").read_text(encoding="utf-8"))
    free = [Free(("common", "network"), 0.5), Free(("stack", "megatron-core", "pace"), 0.06)]
    moved = fit(table, [asked], free)
    assert moved["common"]["network"] == pytest.approx(table["common"]["network"], rel=1e-3)
    assert 1.1 < moved["stack"]["megatron-core"]["pace"] < 1.4
    assert log_ratios(moved, [asked])[0] < 0


def test_residual_sigma_is_of_the_bulk_and_leans_on_the_prior() -> None:
    draws = np.random.default_rng(1).normal(0, 0.2, 4000)
    assert residual_sigma(draws, 0.05) == pytest.approx(0.2, rel=0.05)
    assert residual_sigma(np.array([]), 0.07) == 0.07
    assert residual_sigma(np.array([0.01, -0.01, 5.0]), 0.1) < 0.15
