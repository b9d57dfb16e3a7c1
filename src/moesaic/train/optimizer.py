"""AdamW over the trainable parameters, and the clip that precedes it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moesaic.recipe import Optimizer


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019): weight decay for the matrices between features, `vector_factor` for the rest.

    Embedding, head and norms do not decay, and learn at that multiple of the rate.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name not in ("embedding", "head") and not name.endswith(".b_in")
            (matrices if matrix else vectors).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for parameters, decay, factor in (
            (matrices, settings.weight_decay, 1.0),
            (vectors, 0.0, settings.vector_factor),
        )
        if parameters
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group, in proportion to its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm over all gradients."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return float(nn.utils.get_total_norm(grads)) if grads else 0.0


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, factor)
