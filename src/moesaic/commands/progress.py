"""Progress with time left on stderr, for anything that takes over two seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 2.0  # what is done by then is not shown
LINE_S = 10.0  # without a terminal, one line that often


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A function from the name of what begins to a function that is told (done, total).

    On a terminal a bar that vanishes at the end, elsewhere a line every 10 s.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # no thread of its own beside the computation
    )

    def begin(name: str) -> Callable[[int, int], None]:
        began = shown = time.monotonic()
        for old in bars.task_ids:
            bars.remove_task(old)
        task = bars.add_task(name)

        def tell(done: int, total: int) -> None:
            nonlocal shown
            now = time.monotonic()
            bars.update(task, completed=done, total=total)
            if now - began < QUIET_S:
                return
            if console.is_terminal:
                bars.start()
                bars.refresh()
            elif now - shown >= LINE_S:
                shown = now
                left = (now - began) * (total - done) / max(done, 1)
                console.print(f"{name} {done / total:.0%}, {left:.0f} s left", markup=False, highlight=False)

        return tell

    try:
        yield begin
    finally:
        if bars.live.is_started:  # else it would print an empty line
            bars.stop()
