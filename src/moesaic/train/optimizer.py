"""AdamW over the trainable weights, and its state by their names."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.recipe import Optimizer


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: Optimizer) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019): weight decay for the matrices between features, `vector_factor` for the rest.

    Embedding, head and norms do not decay, and learn at that multiple of the rate.
    """
    groups: dict[tuple[bool, Any], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name not in ("embedding", "head") and not name.endswith(".b_in")
            # One fused update takes weights of one mesh.
            groups.setdefault((matrix, getattr(parameter, "device_mesh", None)), []).append(parameter)
    if not groups:  # a pipeline stage whose weights are all frozen: an optimizer that updates nothing
        groups[True, None] = []
    ordered = sorted(groups.items(), key=lambda item: not item[0][0])
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if matrix else 0.0,
                "lr_factor": 1.0 if matrix else settings.vector_factor,
            }
            for (matrix, _), parameters in ordered
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, in proportion to its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_state(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    order: Callable[[str, Tensor], Tensor],
) -> dict[str, dict[str, Tensor]]:
    """Moments and step count of each trained weight by its name, sharing memory; zeros before the first step.

    `order` gives a moment the dimensions of its weight in the model.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        moments = optimizer.state[parameter]
        if not moments:
            moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state[name] = {
            "step": moments["step"],
            "exp_avg": order(name, moments["exp_avg"].detach()),
            "exp_avg_sq": order(name, moments["exp_avg_sq"].detach()),
        }
    return state
