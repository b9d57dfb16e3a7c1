"""What torchrun tells a process through its variables. Here alone are they read, and without torch."""

import os


def launched() -> bool:
    """Whether torchrun, or a supervisor, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_here() -> int:
    """Number of this process among all, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def meeting_point() -> str:
    """Where processes meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
