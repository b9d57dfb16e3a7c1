"""`RUN/incidents.jsonl`: what went wrong in a run, one line of JSON each, written by ranks and by the supervisor.

Appended with one system call, so that lines of several processes do not mix. metrics.jsonl tells the run as if nothing
had happened; this file tells what happened.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "incidents.jsonl"


def report(run: Path, kind: str, **what: Any) -> None:
    """Append an incident. A disk that is full loses it: no reason to end a run."""
    line = json.dumps({"kind": kind, "at": time.time()} | what).encode() + b"\n"
    try:
        descriptor = os.open(run / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError:
        pass


def incidents(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """All incidents so far, or those of some kinds, in the order of writing; a line cut short is left out."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if not kinds or line["kind"] in kinds]
