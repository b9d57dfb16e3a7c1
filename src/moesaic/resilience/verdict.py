"""Which rank a failure began with: the others fail too, of a connection that is gone."""

import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from moesaic.resilience.beats import Beat
from moesaic.resilience.watchdog import LOOK_S, Watchdog

# What gloo, NCCL and the store say on a rank whose partner is gone (the wording of torch 2.13).
_PARTNER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|closed by peer|broken pipe|unexpected ?exit|socket ?error"
    r"|failed to recv|failed to send|timed out|gloo.*(error|failed)|nccl.*(abort|error)|peer",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """What went wrong first. `step` is the step that rank had begun, 0 before the first."""

    rank: int
    cause: str
    step: int
    phase: str
    at: float
    error: str = ""  # class of the exception, if there was one
    mendable: bool = False
    hang: bool = False

    def __str__(self) -> str:
        if self.hang:
            return self.cause
        where = f"in step {self.step}" if self.phase in ("step", "update") else f"after step {self.step}"
        where = "before its first step" if self.phase == "start" else f"{where} ({self.phase})"
        return f"rank {self.rank} {self.cause} {where}"


def judge(watchdog: Watchdog, exit_codes: Mapping[int, int]) -> Verdict:
    """The first cause, from the ranks' last words, from who vanished first, and from what the launcher saw last."""
    beats, now = watchdog.beats, time.time()
    failed = sorted((b for b in beats.values() if b.end == "failed"), key=lambda b: b.at)
    if watchdog.hang is not None:
        rank = watchdog.hung[0]
        return replace(_verdict(beats.get(rank), rank, watchdog.hang, now), hang=True)
    first_gone = min(watchdog.gone.values(), default=now)
    # An error of the user's comes first or not at all: later ones are how the rest meets a partner that is gone.
    if mendable := [b for b in failed if b.mendable and b.at <= first_gone]:
        first = min(mendable, key=lambda b: b.rank)
        return _verdict(first, first.rank, first.text, first.at)
    if own := [b for b in failed if b.at <= first_gone and not partner_gone(b)]:
        return _verdict(own[0], own[0].rank, f"raised {own[0].error}: {_line(own[0].text)}", own[0].at)
    if watchdog.gone:
        # Ranks ended by the launcher may be gone before the next look: then the one that it saw dead is the cause.
        together = {r: at for r, at in watchdog.gone.items() if at <= first_gone + 2 * LOOK_S}
        rank = next((r for r in together if r in exit_codes), min(together, key=lambda r: together[r]))
        at = together[rank]
        return _verdict(beats.get(rank), rank, _died_of(exit_codes.get(rank)), at)
    if failed:
        return _verdict(failed[0], failed[0].rank, f"raised {failed[0].error}: {_line(failed[0].text)}", failed[0].at)
    rank, code = next(iter(exit_codes.items()))
    return _verdict(beats.get(rank), rank, _died_of(code), now)


def partner_gone(beat: Beat) -> bool:
    """Whether the last words of a rank are about another one."""
    return about_a_partner(beat.error, beat.text)


def about_a_partner(error: str, text: str) -> bool:
    """Whether an exception of class `error` that says `text` is how a rank meets a partner that is gone."""
    kinds = ("RuntimeError", "RankLostError", "DistBackendError", "DistNetworkError", "DistStoreError")
    return error in kinds and bool(_PARTNER_GONE.search(text))


def _verdict(beat: Beat | None, rank: int, cause: str, at: float) -> Verdict:
    if beat is None:
        return Verdict(rank, cause, 0, "start", at)
    return Verdict(rank, cause, beat.step, beat.phase, at, beat.error, beat.mendable)


def _died_of(code: int | None) -> str:
    if code is None:
        return "was killed"
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _line(text: str) -> str:
    return text.partition("\n")[0][:200]
