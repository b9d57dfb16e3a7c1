"""One error for all processes: the first one tells the user, whichever process met it.

What all meet is told by the first process alone. What another process met is left in the store that all share; the
first one loses a partner then, and tells it. Only where that does not come about, the other process speaks itself. It
ends after the first one in any case: torchrun ends all as soon as one has failed, and must not cut the first one short.
"""

import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from moesaic.parallel.launched import launched, rank_here, world_size

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SPOKEN, WORDS = "moesaic/spoken", "moesaic/words"
STARTING_S = 20.0  # before they met: the first process may not be as far yet
ANSWER_S = 3.0  # afterwards
STEP_S = 0.05


def tell(text: str, *, alone: bool = False, lost: bool = False) -> None:
    """Write `error: text` to stderr, once for all processes.

    `alone`: this process never met the others, so it speaks for itself. `lost`: the error is only that a partner is
    gone, whose own words come instead where it left any.
    """
    if alone or not launched() or world_size() == 1:
        _say(text)
    elif rank_here() == 0:
        # torchrun may be ending all by now; this takes a moment only.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        store = _store()
        _say((_words(store) if lost and store is not None else None) or text)
        if store is not None:
            with suppress(RuntimeError):
                store.set(SPOKEN, text)
                time.sleep(4 * STEP_S)  # the store may be ours: let the others look
        signal.signal(signal.SIGTERM, before)
    elif not _left_to_first(None if lost else text):
        _say(f"rank {rank_here()}: {text}")


def after_first() -> None:
    """Let the first process end before this one, which has nothing to say."""
    if launched() and rank_here() > 0:
        _left_to_first(None)


def reason(error: Exception) -> str:
    """The first sentence of an error of torch, without the place in its source."""
    text = str(error).partition("\n")[0].strip()
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return "the port is in use"
    return re.sub(r"^\[[^\s\]]+:\d+\]\s*", "", text).partition(". ")[0].removesuffix(".")


def end(status: int) -> NoReturn:
    """End this process without ceremony, after the threads that it must wait for.

    gloo's own threads sometimes outlive their group and abort an interpreter that ends in the ordinary way.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _left_to_first(text: str | None) -> bool:
    """Wait for the first process to speak; False when it will not. torchrun ends this process while it waits."""
    store = _store()
    if store is None:
        time.sleep(STARTING_S)
        return False
    try:
        if text is not None:
            store.compare_set(WORDS, "", f"rank {rank_here()}: {text}")
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if store.check([SPOKEN]):
                return True
            time.sleep(STEP_S)
    except RuntimeError:  # the store was the first process's own and ended with it
        return text is not None
    # It did not meet our error and waits for an answer of ours. Between CPUs it notices as soon as we end, and finds
    # our words; a GPU may wait until all are killed.
    return text is not None and _gloo()


def _words(store: "Store") -> str | None:
    """What another process left."""
    deadline = time.monotonic() + ANSWER_S / 2
    with suppress(RuntimeError):
        while time.monotonic() < deadline:
            if store.check([WORDS]):
                return store.get(WORDS).decode()
            time.sleep(STEP_S)
    return None


def _store() -> "Store | None":
    """What the processes share, if they have met."""
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist

    from moesaic.parallel.private import shared_store

    return shared_store() if dist.is_initialized() else None


def _gloo() -> bool:
    import torch.distributed as dist

    return bool(dist.get_backend() == "gloo")
