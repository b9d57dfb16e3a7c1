"""Ranks in tests: a function on several gloo ranks, each a process of one thread; see `moesaic.parallel.launch`."""

import os
import signal

from moesaic.parallel.launch import Died, RanksFailed, run_ranks


def die() -> None:
    """End this process as `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)


__all__ = ["Died", "RanksFailed", "die", "run_ranks"]
