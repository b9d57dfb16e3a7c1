"""A server of our own for the while of a measurement, in a process of its own as users start it."""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesaic.errors import ServeError

ADDRESS = re.compile(r"https?://\S+?(?=/?(?:\s|$))")
LAST_LINES = 5
END_S = 40.0  # a little more than the server gives running answers


@contextmanager
def own_server(model: Path) -> Iterator[str]:
    """The address of a `moesaic serve MODEL` that has just become ready; it ends with the block.

    Raises ServeError with its last words when it does not start.
    """
    words = [sys.executable, "-m", "moesaic.cli", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _address(process: "subprocess.Popen[str]") -> str:
    """The first address that the server prints, which it does when it is ready."""
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    for line in process.stdout:
        if found := ADDRESS.search(line):
            return found[0]
        last.append(line.strip())
    said = " ".join(line for line in last if line) or f"status {process.wait()}"
    raise ServeError(f"the server did not start: {said.removeprefix('error: ')}")
