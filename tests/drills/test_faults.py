"""Every fault in a real run on several ranks: it strikes, it is named, and it costs time and nothing else."""

import pytest

from moesaic.resilience.drills import ABOUT, LAYOUT, Drill, run_drills
from moesaic.resilience.faults import ENDS_RANKS, KINDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drill]:
    said: list[str] = []
    found = run_drills(tmp_path_factory.mktemp("drills") / "home", layout=LAYOUT, say=said.append)
    return {drill.name: drill for drill in found}


def test_each_kind_of_fault_is_rehearsed() -> None:
    assert set(ABOUT) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_costs_time_and_nothing_else(kind: str, drills: dict[str, Drill]) -> None:
    drill = drills[kind]
    assert drill.happened
    assert drill.equal, drill.said
    assert drill.named, drill.said
    assert drill.restarts == (1 if kind in ENDS_RANKS else 0), drill.said
    assert (drill.recovery is not None) == (kind in ENDS_RANKS)
    assert drill.passed
