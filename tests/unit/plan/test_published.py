"""Rows of measurements as questions: what is read, amended or refused, and how each way of telling a speed is meant."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from moesaic.errors import PlanError
from moesaic.plan.flops import training_flops
from moesaic.plan.layouts import FULL
from moesaic.plan.memory import memory
from moesaic.plan.published import CAUSAL, COLUMNS, RATES, Trial, check_counts, number, question, rows, settings
from moesaic.plan.shapes import read_shape
from moesaic.plan.stack import stacks

ROW = {
    **dict.fromkeys(COLUMNS, ""),
    **{"id": "x", "category": "train", "model": "llama-3-8b", "device": "h100", "n_devices": "16", "tp": "2"},
    **{"pp": "1", "dp": "8", "seq_len": "8192", "global_batch_seqs": "64", "precision": "bf16", "metric": "iter_time"},
    **{"unit": "s", "value": "4.0", "micro_batch": "1", "recompute": "selective", "source": "own"},
}  # fmt: skip


def trial(**changes: str) -> Trial:
    asked = question({**ROW, **changes})
    assert isinstance(asked, Trial), asked
    return asked


def by_id(name: str) -> Mapping[str, str]:
    return next(row for row in rows() if row["id"] == name)


def test_the_shipped_rows_are_all_read_and_every_training_row_is_a_question_or_has_a_reason() -> None:
    found = rows()
    assert len(found) == 595
    asked = [question(r) for r in found if r["category"] == "train"]
    assert sum(isinstance(a, Trial) for a in asked) > 180
    assert all(isinstance(a, Trial) or 0 < len(a) < 120 for a in asked)


def test_each_way_of_telling_a_speed_gives_the_same_seconds() -> None:
    """Worked out by hand from 4 s a step."""
    tokens, devices = 64 * 8192, 16
    shape = read_shape("llama-3-8b")
    flop, again = (training_flops(shape, 8192, False, mode) for mode in ("none", "full"))
    rate = tokens * flop / (4.0 * devices)
    said = {
        "iter_time": ("s", 4.0),
        "tokens_per_s": ("tok/s", tokens / 4),
        "tokens_per_s_per_gpu": ("tok/s", tokens / 4 / devices),
        "mfu": ("fraction", rate / 989.5e12),
        "model_tflops_per_gpu": ("TFLOP/s", rate / 1e12),
        "hw_tflops_per_gpu": ("TFLOP/s", rate * again / flop / 1e12),
    }
    assert set(said) == set(RATES)
    for metric, (unit, value) in said.items():
        seconds = trial(metric=metric, unit=unit, value=repr(value), recompute="full").published_seconds()
        assert seconds == pytest.approx(4.0, rel=1e-3), metric
    assert trial(unit="ms", value="4000").published_seconds() == 4.0
    percent = said["mfu"][1] * 100
    assert trial(metric="mfu", unit="%", value=repr(percent)).published_seconds() == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("name", ["mbn-", "nemo2407-", "mlm-llama-readme-70b", "nanotron-", "mbcard-moonlight"])
def test_both_rates_of_a_row_agree(name: str) -> None:
    """Rows that state TFLOP/s and tokens/s say how their source counts FLOP.

    GPT-OSS changed its count between releases; DeepSeek-V3 counts its head of multi-token prediction in some.
    """
    told = 0
    for row in rows():
        stated = re.search(r"([\d.]+) (?:model )?TFLOP/s/GPU", row["notes"])
        asked = question(row) if row["category"] == "train" and row["id"].startswith(name) else ""
        if not stated or isinstance(asked, str) or row["model"] in ("GPT-OSS 120B", "DeepSeek-V3"):
            continue
        rate = float(stated[1]) * 1e12
        tokens = asked.job.batch_tokens / asked.published_seconds() / asked.devices
        causal = any(word in row["source"] for word in CAUSAL)
        assert training_flops(asked.shape, asked.job.seq_len, causal) * tokens == pytest.approx(rate, rel=0.025), row[
            "id"
        ]
        told += 1
    assert told >= 1


def test_causal_sources_count_half_of_the_scores() -> None:
    told = {"metric": "mfu", "unit": "fraction", "value": "0.4"}
    whole, half = (trial(**told, source=s).published_seconds() for s in ("own", "arXiv:2407.21783"))
    scores = 6 * 32 * 8192 * 4096 / training_flops(read_shape("llama-3-8b"), 8192, causal=False)
    assert half / whole == pytest.approx(1 - scores)


def test_opt_takes_the_batch_of_its_notes() -> None:
    row = by_id("opt-175b")
    assert "2M-token batch" in row["notes"]
    assert row["global_batch_seqs"] == "992"
    assert 992 % 124 == 0
    assert abs(992 * 2048 - 2e6) <= abs(868 * 2048 - 2e6)
    asked = question(row)
    assert isinstance(asked, Trial)
    assert (asked.open.recompute == FULL).all()  # a rate of the hardware counts what is computed again


def test_what_a_row_leaves_open_is_the_fastest_that_fits() -> None:
    stated, left_open = trial(), trial(micro_batch="", recompute="")
    using = stacks()["megatron-core"]
    assert len(left_open.open) > len(stated.open) == 1
    layout, seconds, space = left_open.best(using)
    assert seconds <= stated.best(using)[1]
    assert space.total[0] <= 80e9
    everything = memory(left_open.shape, left_open.job, left_open.open, using).total
    assert (everything > 80e9).any()  # so that fitting was a choice
    assert np.isin(layout.micro_batch, (1, 2, 4, 8)).all()


def test_recipes_of_megatron_bridge_keep_fewer_bytes() -> None:
    assert trial().job.gradient_bytes == 4
    bridge = trial(source="NVIDIA-NeMo/Megatron-Bridge performance summary")
    assert (bridge.stack, bridge.job.gradient_bytes, bridge.job.optimizer_bytes) == ("megatron-bridge", 2, 12)
    asked = question(by_id("mbcard-moonlight16b-h100-8-mem-none"))
    assert isinstance(asked, Trial)
    assert asked.job.optimizer_bytes == 8


def test_old_megatron_split_norms_only_with_selective_recomputation() -> None:
    old = stacks()["megatron-2021"]
    assert not settings({**ROW, "recompute": "full"}, old).sequence_parallel
    assert settings({**ROW, "recompute": "selective+sp"}, old).sequence_parallel
    assert settings({**ROW, "recompute": "full"}, stacks()["megatron-core"]).sequence_parallel


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dp": ""}, "no published layout"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"model": "Foo-9B"}, "unknown model"),
        ({"model": "Qwen3-Next-80B"}, "not a plain transformer"),
        ({"metric": "gpu_hours_per_1T_tokens"}, "a whole run"),
        ({"metric": "happiness"}, "'happiness'"),
        ({"n_devices": "24"}, "16 and not the 24 devices"),
        ({"global_batch_seqs": "60"}, "60 sequences do not divide"),
        ({"tp": "16", "dp": "1", "pp": "40", "n_devices": "640"}, "do not divide"),
        ({"precision": "fp3"}, "no fp3"),
        ({"precision": "fp8", "device": "a100-80"}, "no fp8"),
    ],
)
def test_a_row_that_cannot_be_compared_says_why(changes: dict[str, str], reason: str) -> None:
    asked = question({**ROW, **changes})
    assert isinstance(asked, str)
    assert reason in asked


@pytest.mark.parametrize("cell", ["-4", "0", "two", "4.5", "nan", "9" * 20])
def test_a_count_that_is_none_names_row_and_column(cell: str) -> None:
    with pytest.raises(PlanError, match=r"row x: tp = "):
        check_counts({**ROW, "tp": cell})


def test_counts_that_contradict_each_other() -> None:
    with pytest.raises(PlanError, match="top_k = 4 exceeds n_experts = 2"):
        check_counts({**ROW, "top_k": "4", "n_experts": "2"})
    with pytest.raises(PlanError, match="n_layers = 9999999 exceeds"):
        check_counts({**ROW, "n_layers": "9999999"})


@pytest.mark.parametrize("cell", ["", "-1", "0", "fast", "nan", "inf"])
def test_a_value_that_is_none_names_row_and_column(cell: str) -> None:
    with pytest.raises(PlanError, match=r"row x: value = "):
        number({**ROW, "value": cell}, "value")


def test_any_csv_of_the_same_columns_is_read(tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text(
        "\ufeffmodel, metric,value,n_devices,notes\r\n"
        'llama-3-8b,Iter_Time,4,8.0,"two\nlines"\r\n'
        "short\r\nlong,iter_time,1,8,a,b,c\r\n,,,,\r\n",
        encoding="utf-8",
    )
    found = rows(file)
    assert [r["id"] for r in found] == ["line 2", "line 3", "line 4"]
    assert set(COLUMNS) <= found[0].keys()
    assert found[0]["metric"] == "iter_time"
    assert (found[0]["n_devices"], found[0]["notes"]) == ("8", "two\nlines")
    assert found[1]["metric"] == ""


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"model,metric,value\n", b"\xff\xfe\x00"])
def test_what_is_no_table_of_measurements_is_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    with pytest.raises(PlanError, match=r"bad\.csv"):
        rows(file)
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(PlanError, match="cannot read"):
            rows(missing)
