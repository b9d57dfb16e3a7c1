"""Rotary position embedding (Su et al. 2021), in the half-split form that Llama and Mixtral weights use."""

import torch
from torch import Tensor


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each `[*positions, head_dim]`, for integer positions.

    Angles are computed in fp32 whatever `dtype` is: in bf16 positions above 256 would collide.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float().unsqueeze(-1) * theta**-exponents  # [*positions, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BSHC: Tensor, cos_BSC: Tensor, sin_BSC: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) of every head by its angle. Shapes `[batch, seq, heads, head_dim]`."""
    first, second = x_BSHC.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BSHC * cos_BSC.unsqueeze(2) + turned * sin_BSC.unsqueeze(2)
