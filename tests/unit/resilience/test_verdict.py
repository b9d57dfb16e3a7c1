"""One rank is the cause of a failure; the others die of it, and say so."""

from pathlib import Path
from typing import Any

from moesaic.resilience.beats import Beat
from moesaic.resilience.limits import Limits
from moesaic.resilience.verdict import judge
from moesaic.resilience.watchdog import Watchdog

GONE = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:30517"


def watchdog(tmp_path: Path, *beats: Beat, gone: dict[int, float] | None = None) -> Watchdog:
    dog = Watchdog(tmp_path, len(beats), Limits(), lambda step, at: None, lambda line: None)
    dog.beats = {beat.rank: beat for beat in beats}
    dog.gone = gone or {}
    return dog


def beat(rank: int, at: float = 10.0, **values: Any) -> Beat:
    return Beat(rank, 1, at, **({"phase": "step", "step": 7} | values))


def failed(rank: int, error: str, text: str, at: float, mendable: bool = False) -> Beat:
    return beat(rank, at, end="failed", error=error, text=text, mendable=mendable)


def test_a_killed_rank_is_blamed_and_not_the_one_whose_connection_closed(tmp_path: Path) -> None:
    dog = watchdog(tmp_path, failed(0, "RuntimeError", GONE, 10.0), beat(1), gone={1: 10.04})
    assert str(judge(dog, {0: 1})) == "rank 1 was killed in step 7 (step)"
    assert str(judge(dog, {1: -9})) == "rank 1 died of SIGKILL in step 7 (step)"


def test_an_exception_of_its_own_comes_before_what_others_met(tmp_path: Path) -> None:
    dog = watchdog(tmp_path, failed(0, "RuntimeError", GONE, 9.9), failed(1, "ValueError", "no\nmore", 10.0))
    assert str(judge(dog, {0: 1})) == "rank 1 raised ValueError: no in step 7 (step)"


def test_what_the_user_can_mend_is_told_in_the_words_of_the_first_rank(tmp_path: Path) -> None:
    dog = watchdog(
        tmp_path,
        failed(0, "RecipeError", "change tp", 10.1, mendable=True),
        failed(1, "RecipeError", "change tp", 10.0, mendable=True),
    )
    verdict = judge(dog, {1: 1})
    assert (verdict.mendable, verdict.rank, verdict.cause) == (True, 0, "change tp")


def test_a_partner_lost_while_ranks_meet_is_no_error_of_the_user(tmp_path: Path) -> None:
    """World.join says LayoutError when nobody answers; after a death that is only its consequence."""
    late = failed(0, "LayoutError", "rank 0 of 2 did not meet the others", 12.0, mendable=True)
    verdict = judge(watchdog(tmp_path, late, beat(1, phase="start", step=0), gone={1: 10.0}), {1: -9})
    assert not verdict.mendable
    assert str(verdict) == "rank 1 died of SIGKILL before its first step"


def test_ranks_ended_afterwards_are_not_the_cause(tmp_path: Path) -> None:
    dog = watchdog(tmp_path, beat(0), beat(1), beat(2), gone={2: 10.0, 0: 11.0, 1: 11.0})
    assert judge(dog, {0: -9}).rank == 2


def test_of_ranks_that_are_gone_at_one_look_the_launchers_word_counts(tmp_path: Path) -> None:
    """While ranks meet, one that is asked to end is gone at once."""
    dog = watchdog(tmp_path, beat(0, phase="start"), beat(1, phase="start"), gone={0: 10.0, 1: 10.0})
    assert judge(dog, {1: -9}).rank == 1


def test_a_hang_is_told_whole(tmp_path: Path) -> None:
    dog = watchdog(tmp_path, beat(0), beat(1), gone={0: 70.0, 1: 70.0})
    dog.hang, dog.hung = "no sign of life for 60 s: ...", [1]
    assert str(judge(dog, {0: -9})) == "no sign of life for 60 s: ..."
    assert judge(dog, {0: -9}).rank == 1
