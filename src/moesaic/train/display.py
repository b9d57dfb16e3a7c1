"""What a person sees while a run trains: a progress bar over a line of numbers, or plain lines in a log."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_S = 0.25  # drawing takes milliseconds; four times a second stays below 1 % of a slow machine
LINE_S = 10.0  # without a terminal, one line that often
_LEVELS = "▁▂▃▄▅▆▇█"
_SMOOTHING = 0.9  # of the rate behind the time left: share of the old value


class Display:
    """Draws from the training thread when a step arrives, never from a thread of its own.

    On a terminal it redraws in place, at most four times a second; elsewhere it prints a line every 10 s.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._stage, self._tokens = "", 1
        self._rate = 0.0
        self._drawn_at = float("-inf")
        self._last: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_stage()
        if self._live:
            self._live.stop()

    def start_stage(self, name: str, tokens: int, done: int = 0) -> None:
        """Begin a bar over the `tokens` of stage `name`, `done` of which were trained on before a resume."""
        self._finish_stage()
        self._stage, self._tokens, self._rate = name, tokens, 0.0
        resumed = f", {_count(done)} of them done" if done else ""
        self.message(f"stage {name}: {_count(tokens)} tokens{resumed}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show a step's line of `metrics.jsonl` with `stage_tokens`, if it is time to draw again.

        Fields that are missing or None are left out.
        """
        rate = metrics.get("tokens_per_second") or 0.0
        self._rate = _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate if self._rate else rate
        self._last = metrics
        now = time.monotonic()
        if now - self._drawn_at >= (REFRESH_S if self._live else LINE_S):
            self._drawn_at = now
            self._draw()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, highlight=False)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show on a terminal what keeps the run from stepping, for as long as it takes."""
        if self._live:
            self._live.update(Text(f"{what} ..."), refresh=True)
        yield
        self._draw(again=True)

    def _finish_stage(self) -> None:
        """Leave the stage's last numbers on the screen."""
        if self._last is not None:
            self._draw()
            if self._live:
                self.console.print(self._text(self._last))
        self._last, self._drawn_at = None, float("-inf")

    def _draw(self, again: bool = False) -> None:
        """Show the last step; `again`: what was on the screen before, so nothing for a log."""
        if self._last is None:
            return
        if self._live:
            self._live.update(self._render(self._last), refresh=True)
        elif not again:
            self.message(self._text(self._last))

    def _done(self, metrics: Mapping[str, Any]) -> int:
        return min(self._tokens, int(metrics.get("stage_tokens", 0)))

    def _text(self, metrics: Mapping[str, Any]) -> str:
        done = self._done(metrics)
        parts = [
            f"{self._stage} {done / self._tokens:.1%}",
            f"step {metrics.get('step', 0)}",
            *_numbers(metrics),
        ]
        return " · ".join([*parts, *([f"{_clock((self._tokens - done) / self._rate)} left"] if self._rate else [])])

    def _render(self, metrics: Mapping[str, Any]) -> Group:
        done = self._done(metrics)
        left = f"{_clock((self._tokens - done) / self._rate)} left" if self._rate else ""
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._stage, style="bold"),
            ProgressBar(total=self._tokens, completed=done, width=40),
            f"{done / self._tokens:.1%}",
            Text(f"{_count(done)}/{_count(self._tokens)} tokens", style="dim"),
            Text(left, style="cyan"),
        )
        lines = [Text(" · ".join([f"step {metrics.get('step', 0)}", *_numbers(metrics)]))]
        if load := metrics.get("load"):
            lines.append(Text(f"experts {load_bar(load)}", style="dim"))
        return Group(row, *lines)


def load_bar(load: list[list[float]]) -> str:
    """Load per expert, averaged over layers, as a row of blocks of at most 64, with extremes over all layers.

    `load`: share of assignments, [layers][experts]. A full block is twice an even share.
    """
    experts = len(load[0])
    mean = [sum(layer[e] for layer in load) / len(load) * experts for e in range(experts)]
    stride = -(-experts // 64)
    groups = [sum(mean[i : i + stride]) / len(mean[i : i + stride]) for i in range(0, experts, stride)]
    blocks = "".join(_LEVELS[min(len(_LEVELS) - 1, int(value / 2 * len(_LEVELS)))] for value in groups)
    low, high = min(map(min, load)) * experts, max(map(max, load)) * experts
    return f"{blocks} least {low:.2f}, most {high:.2f} of an even share"


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    shown = [
        ("loss", "loss {:.4f}"),
        ("lr", "lr {:.2e}"),
        ("grad_norm", "norm {:.2f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("peak_share", "{:.0%} of peak"),
    ]
    out = [form.format(metrics[key]) for key, form in shown if metrics.get(key) is not None]
    return [*out, "skipped"] if metrics.get("skipped") else out


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
