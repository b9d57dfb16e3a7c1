"""Angles of the rotary position embedding (Su et al. 2021), in the half-split form of Llama and Mixtral weights."""

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
