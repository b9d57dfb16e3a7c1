"""What a client saw of requests, as numbers: TTFT, TPOT, ITL, E2EL, percentiles and goodput.

The definitions are those of vLLM's `bench serve`: time to the first token (TTFT), time per output token after the
first (TPOT, one number a request), time between two pieces of a stream (ITL, many a request), and from the request to
its end (E2EL). Goodput counts the requests a second that met every objective.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.errors import ServeError

METRICS = {"ttft": "time to first token", "tpot": "time per output token", "itl": "inter-token", "e2el": "end to end"}
GOODPUT = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Timing:
    """One request as its client saw it; times in seconds of one monotonic clock."""

    sent: float
    pieces: tuple[float, ...] = ()
    """When each piece of the answer came; a piece may be several tokens."""
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def e2el(self) -> float:
        """Seconds from the request to its end."""
        return self.ended - self.sent

    @property
    def ttft(self) -> float | None:
        """Seconds to the first piece; None when none came."""
        return self.pieces[0] - self.sent if self.pieces else None

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first, to the last piece; None for less than two tokens."""
        if self.output_tokens < 2 or not self.pieces:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.output_tokens - 1)

    @property
    def itl(self) -> tuple[float, ...]:
        """Seconds between one piece and the next."""
        return tuple(b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False))


def summary(
    timings: Sequence[Timing],
    seconds: float,
    percentiles: Sequence[float] = (50, 90, 99),
    objectives: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Rates over `seconds` and latencies in milliseconds. `objectives`: metric -> milliseconds."""
    good = [t for t in timings if t.error is None]
    found: dict[str, Any] = {
        "completed": len(good),
        "failed": len(timings) - len(good),
        "duration_s": seconds,
        "prompt_tokens": sum(t.prompt_tokens for t in good),
        "output_tokens": sum(t.output_tokens for t in good),
        "request_throughput": len(good) / seconds,
        "output_throughput": sum(t.output_tokens for t in good) / seconds,
        "total_throughput": sum(t.prompt_tokens + t.output_tokens for t in good) / seconds,
        "peak_concurrency": concurrency(good),
    }
    if objectives:
        found["goodput"] = sum(meets(t, objectives) for t in good) / seconds
    for metric in METRICS:
        values = samples(good, metric)
        row = {"mean": sum(values) / len(values)} if values else {}
        found[f"{metric}_ms"] = row | {f"p{p:g}": percentile(values, p) for p in percentiles if values}
    if failed := next((t.error for t in timings if t.error is not None), None):
        found["first_error"] = failed
    return found


def samples(timings: Sequence[Timing], metric: str) -> list[float]:
    """Milliseconds of a metric over requests (of ITL, over pieces)."""
    if metric == "itl":
        return [1000 * gap for t in timings for gap in t.itl]
    found = (getattr(t, metric) for t in timings)
    return [1000 * value for value in found if value is not None]


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest values, as NumPy's default. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no percentile")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def meets(timing: Timing, objectives: Mapping[str, float]) -> bool:
    """Whether a request met every objective; one of a single token has no TPOT to miss."""
    if timing.error is not None or timing.ttft is None:
        return False
    seen = {"ttft": timing.ttft, "tpot": timing.tpot or 0.0, "e2el": timing.e2el}
    return all(1000 * seen[metric] <= limit for metric, limit in objectives.items())


def concurrency(timings: Sequence[Timing]) -> int:
    """The most requests that were under way at once."""
    # An end at the same time as a beginning comes first.
    changes = sorted([(t.sent, 1) for t in timings] + [(t.ended, -1) for t in timings])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def parse_objectives(words: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:50"]` -> milliseconds by metric. Raises ServeError."""
    found = {}
    for word in words:
        metric, _, limit = word.partition(":")
        try:
            found[metric] = float(limit)
        except ValueError:
            found[metric] = 0.0
        if metric not in GOODPUT or not 0 < found[metric] < math.inf:
            raise ServeError(f"--goodput {word}: write metric:milliseconds with one of {', '.join(GOODPUT)}")
    return found


def describe(found: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A summary as lines for people."""
    lines = [
        f"{found['completed']} requests answered, {found['failed']} failed, in {found['duration_s']:.2f} s; "
        f"at most {found['peak_concurrency']} at once",
        f"{found['output_throughput']:,.1f} output tokens/s, {found['total_throughput']:,.1f} with the prompts', "
        f"{found['request_throughput']:.2f} requests/s",
    ]
    if "goodput" in found:
        lines.append(f"goodput {found['goodput']:.2f} requests/s met every objective")
    if "first_error" in found:
        lines.append(f"first failure: {found['first_error']}")
    shown = [(METRICS[m], found[f"{m}_ms"]) for m in metrics if found[f"{m}_ms"]]
    if shown:
        names = list(shown[0][1])
        lines.append("".join([f"{'ms':<22}", *(f"{name:>10}" for name in names)]))
        lines += ["".join([f"{what:<22}", *(f"{row[name]:>10.2f}" for name in names)]) for what, row in shown]
    return "\n".join(lines)
