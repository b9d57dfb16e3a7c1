"""Activations computed again in the backward pass instead of kept (Chen et al. 2016; Korthikanti et al. 2022)."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from moesaic.parallel.part import Part
from moesaic.recipe import Layout

# Nothing here draws random numbers.
_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def apply_recompute(part: Part, layout: Layout) -> None:
    """`full`: keep the input of each layer alone. `selective`: all but what lies within attention, where it grows with
    the square of the length.
    """
    for block in part.blocks:
        if layout.recompute == "full":
            block.forward = partial(_again, block.forward)  # type: ignore[method-assign]
        elif layout.recompute == "selective":
            block.attention.attend = partial(_again, block.attention.attend)
