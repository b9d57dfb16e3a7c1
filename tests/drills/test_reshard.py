"""A run goes on in another layout, or with more replicas, and computes what it would have computed undisturbed.

Legend of the layouts: pipeline stages x tensor ranks, data-parallel replicas.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from moesaic.recipe import Recipe, check_recipe
from moesaic.train import machine
from moesaic.train.observer import Observer
from ranks import run_ranks

TOLERANCE = 1e-5  # of a loss, in fp32: sums over ranks come in another order and errors grow with the steps


class StopAfter(Observer):
    """Asks this rank to save and end after a step, as SIGTERM from a scheduler would."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def step_ends(self, line: Mapping[str, Any]) -> None:
        """See `Observer`."""
        if line["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def part(rank: int, tree: dict[str, Any], run: str, home: str, stop: int | None, resume: bool) -> list[list[str]]:
    """Train up to a step; for each step, a digest of every sequence that this rank read, without empty ones."""
    from moesaic.data import Loader
    from moesaic.train.run import train

    machine.gemm_peak = lambda *args: 1e12  # type: ignore[assignment]
    seen: list[list[str]] = []
    draw = Loader.next_batch

    def watched(self: Loader, *args: Any) -> Any:
        batch = draw(self, *args)
        if batch is not None:
            rows = [r for r, d in zip(batch.tokens, batch.documents, strict=True) if int(d.max()) >= 0]
            seen.append([hashlib.sha256(r.numpy().tobytes()).hexdigest() for r in rows])
        return batch

    recipe = check_recipe(tree, "here")
    Loader.next_batch = watched  # type: ignore[method-assign]
    try:
        train(recipe, Path(run), data_home=Path(home), resume=resume, observer=StopAfter(stop))
    finally:
        Loader.next_batch = draw  # type: ignore[method-assign]
    return seen[-(stop or 10**9) :]


def recipe(tiny_recipe: Recipe, **stage: Any) -> dict[str, Any]:
    """One stage of the tiny system in fp32, for layouts of up to eight processes."""
    tree = tiny_recipe.model_dump(mode="json")
    tree["stages"] = [tree["stages"][0] | {"tokens": 15_000, "batch": [{"tokens": 512}]} | stage]
    tree["hardware"]["count"] = 8
    tree["checkpoints"] |= {"every_steps": 1000}
    return tree


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in tiny.steps(run)]


def close(ours: Path, theirs: Path) -> None:
    """Every step stands once, with the same tokens, and the same loss to the tolerance; ledgers are equal."""
    mine, other = tiny.steps(ours), tiny.steps(theirs)
    assert [s["step"] for s in mine] == [s["step"] for s in other]
    assert [s["batch_tokens"] for s in mine] == [s["batch_tokens"] for s in other]
    for a, b in zip(mine, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=TOLERANCE), a["step"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3), a["step"]
    assert json.loads((ours / "ledger.json").read_text()) == json.loads((theirs / "ledger.json").read_text())


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs beside built data."""
    folder = tmp_path_factory.mktemp("reshard")
    shutil.copytree(tiny_home, folder / "data")
    return folder


def in_layouts(
    tree: dict[str, Any], home: Path, name: str, parts: list[tuple[dict[str, int | str], int | None]]
) -> tuple[Path, list[list[str]]]:
    """Train in one layout after another, each up to its step; the run, and the sequences of each step in order."""
    run, order = home / name, []
    for i, (layout, stop) in enumerate(parts):
        now = tree | {"layout": layout}
        made = check_recipe(now, "here").layout
        found = run_ranks(part, made.world, now, str(run), str(home / "data"), stop, i > 0, limit_s=240)
        # Ranks of one replica read the same; replicas one after the other make the batch.
        inner = made.cp * made.tp
        before = len(order)
        for step in range(min(len(f) for f in found)):
            order.append([digest for r in range(0, made.dp * inner, inner) for digest in found[r][step]])
        for rank in range(made.world):
            assert [found[rank][s] for s in range(len(order) - before)] == [
                found[rank % (made.dp * inner) // inner * inner][s] for s in range(len(order) - before)
            ]
    return run, order


def test_pp2_tp2_then_dp4_then_one_process(tiny_recipe: Recipe, home: Path) -> None:
    """The same sequences in the same order, an equal ledger, losses of the next steps within the tolerance."""
    tree = recipe(tiny_recipe)
    whole, order = in_layouts(tree, home, "whole", [({}, None)])
    assert len(losses(whole)) > 26
    parts: list[tuple[dict[str, int | str], int | None]] = [
        ({"pp": 2, "tp": 2, "ep": 2}, 4),
        ({"dp": 4}, 8),
        ({}, None),
    ]
    run, found = in_layouts(tree, home, "resharded", parts)
    close(run, whole)
    assert len(found) == len(losses(run))
    assert found == order[-len(found) :]  # before its first step the undisturbed run measured its rate
    resumes = [line for line in tiny.lines(run) if line.get("event") == "resume"]
    assert [r["at_step"] for r in resumes] == [4, 8]


RAMP = [
    {"tokens": 256, "dp": 1},
    {"after_tokens": 1500, "tokens": 512, "dp": 1},
    {"after_tokens": 4000, "tokens": 1024, "dp": 2},
]


def test_a_ramp_of_4_8_16_micro_batches_that_doubles_the_replicas(tiny_recipe: Recipe, home: Path) -> None:
    """Two pipeline stages; at the third step of the ramp the supervisor goes on with four processes for two."""
    from moesaic.resilience.job import supervised

    tree = recipe(tiny_recipe, batch=RAMP, micro_batch=1, tokens=9000)
    alone = recipe(
        tiny_recipe, batch=[{k: v for k, v in b.items() if k != "dp"} for b in RAMP], micro_batch=1, tokens=9000
    )
    whole, _ = in_layouts(alone, home, "ramp-whole", [({}, None)])
    made = check_recipe(tree | {"layout": {"pp": 2, "dp": 2, "zero": 1}}, "here")
    assert supervised(made, home / "ramp", data_home=home / "data") == home / "ramp" / "model"
    close(home / "ramp", whole)
    sizes = [line["batch_sequences"] for line in tiny.steps(home / "ramp")]
    assert sorted(set(sizes)) == [4, 8, 16]
    (resume,) = [line for line in tiny.lines(home / "ramp") if line.get("event") == "resume"]
    assert resume["at_step"] == sizes.index(16)
    assert resume["lost_steps"] == 0
    ours, theirs = tiny.tensors(home / "ramp" / "model"), tiny.tensors(whole / "model")
    assert all(abs(ours[name] - theirs[name]).max() < 1e-4 for name in theirs)  # Adam: up to lr for each rounding


def test_a_stage_that_trains_one_weight_goes_on_with_a_rank_that_trains_nothing(
    tiny_recipe: Recipe, home: Path
) -> None:
    """One process, then two pipeline stages of which the first is frozen whole, twice: it saves no moments."""
    tree = recipe(tiny_recipe, trainable=["norm.weight"], tokens=4000)
    whole, _ = in_layouts(tree, home, "norm-one", [({}, None)])
    piped: dict[str, int | str] = {"pp": 2, "zero": 0}
    ours, _ = in_layouts(tree, home, "norm-piped", [({}, 2), (piped, 4), (piped, None)])
    close(ours, whole)
    found, expected = tiny.tensors(ours / "model"), tiny.tensors(whole / "model")
    for name, weight in expected.items():
        if name == "model.norm.weight":
            assert abs(weight - 1).max() > 1e-3
            assert abs(found[name] - weight).max() < TOLERANCE
        else:
            assert np.array_equal(found[name], weight), name


def test_stages_of_two_precisions_train_alike_whether_replicas_divide_weights_or_not(
    tiny_recipe: Recipe, home: Path
) -> None:
    """One engine serves all stages, and gathers experts in a type that does for each."""
    tree = recipe(tiny_recipe, tokens=4_000, precision="bf16")
    tree["stages"].append(tree["stages"][0] | {"name": "exact", "precision": "fp32"})
    undivided, divided = (in_layouts(tree, home, f"zero{z}", [({"dp": 2, "zero": z}, None)])[0] for z in (0, 1))
    assert len(losses(divided)) > 12
    close(divided, undivided)
