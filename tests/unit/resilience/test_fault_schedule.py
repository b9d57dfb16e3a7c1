"""Faults drawn from a seed: the same each time, each able to strike, each once."""

from collections import Counter
from pathlib import Path

import pytest

from moesaic.errors import MoesaicError
from moesaic.resilience.faults import AT_A_SAVE, KINDS, Fault, FaultInjector, damage, schedule

PLAN = {"seed": 7, "steps": 2000, "every": 5, "world": 2}


def test_a_schedule_is_a_function_of_its_seed() -> None:
    assert schedule(300, **PLAN) == schedule(300, **PLAN)
    assert schedule(300, **PLAN) != schedule(300, **(PLAN | {"seed": 8}))


def test_every_kind_is_drawn_and_leaves_room_before_and_after() -> None:
    faults = schedule(300, **PLAN)
    assert len(set(faults)) == 300
    assert set(Counter(f.kind for f in faults)) == set(KINDS)
    assert all(5 < f.step <= 1995 for f in faults)
    assert all(f.step % 5 == 0 for f in faults if f.kind in AT_A_SAVE)
    assert {f.rank for f in faults} == {0, 1}


def test_more_faults_than_fit_are_refused() -> None:
    with pytest.raises(MoesaicError, match="take more steps or fewer faults"):
        schedule(300, seed=1, steps=20, every=5, world=1)


def test_a_fault_that_cannot_be_is_refused() -> None:
    with pytest.raises(MoesaicError, match="no such kind; choose from kill_forward"):
        Fault("flood", 3)  # type: ignore[arg-type]
    with pytest.raises(MoesaicError, match="steps count from 1"):
        Fault("nan", 0)


def test_a_fault_strikes_once_in_a_run_and_only_its_rank(tmp_path: Path) -> None:
    fault = Fault("nan", 3, 1)
    struck = [FaultInjector([fault], tmp_path, rank)._due(step, "nan") for rank in (0, 1) for step in (2, 3, 3)]
    assert struck == [False, False, False, False, True, False]


def test_damage_leaves_the_size_and_changes_the_content(tmp_path: Path) -> None:
    for name, size in (("__0_0.distcp", 100), ("__1_0.distcp", 5000)):
        (tmp_path / name).write_bytes(bytes(size))
    assert damage(tmp_path).name == "__1_0.distcp"
    after = (tmp_path / "__1_0.distcp").read_bytes()
    assert len(after) == 5000
    assert after != bytes(5000)
