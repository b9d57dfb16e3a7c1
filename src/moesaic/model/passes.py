"""Which gradients the backward pass that runs now is for.

Zero-bubble schedules run the backward pass of a stage twice, once for its inputs and once for its weights. The
operators of torch compute in each only what is asked for; `ctx.needs_input_grad` of our own says the same in both.
"""

from typing import Any

import torch
from torch import Tensor


def wanted(ctx: Any, *inputs: int) -> bool:
    """Inside `backward` of a torch.autograd.Function: whether this pass uses the gradient of any of these inputs.

    `inputs`: positions among the tensors that `apply` was given.
    """
    if torch.compiler.is_compiling():  # there one graph is made for all
        return any(ctx.needs_input_grad[i] for i in inputs)
    return any(_runs(ctx.next_functions[i][0]) for i in inputs)


def _runs(node: torch.autograd.graph.Node | None) -> bool:
    if node is None:  # an input without a gradient
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch's answer for a leaf that autograd.grad was asked for; without this it would be False
        return True


def keep(ctx: Any, gradient: Tensor, found: Any) -> None:
    """In a pass for inputs: leave what the pass for weights, from the same `gradient` of the output, need not redo."""
    ctx.kept = (gradient, gradient._version, found)


def kept(ctx: Any, gradient: Tensor) -> Any:
    """What an earlier pass from the same gradient left, once; None where there was none."""
    of, version, found = ctx.__dict__.pop("kept", (None, 0, None))
    return found if of is gradient and version == gradient._version else None
