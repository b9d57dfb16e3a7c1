"""Keeping freed memory for the next step, on a CPU under glibc.

Large tensors come and go each step. By default glibc returns them to the kernel, which hands out zeroed pages again:
up to 90,000 page faults a step, 15-20 % of its time (benchmarks/train_vs_transformers.py, docs/lab-log.md).
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for the rest of this process. False where there is no glibc."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
