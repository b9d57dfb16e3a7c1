"""Angles of the rotary position embedding (Su et al. 2021), in the half-split form of Llama and Mixtral weights.

Legend: C head width, B sequences, S positions.
"""

import math

import torch
from torch import Tensor

from moesaic.recipe import Model, RopeScaling


def rotary_table(
    positions: Tensor, config: Model, dtype: torch.dtype, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each `[*positions, head_dim]`, for integer positions.

    Angles are computed in fp32 whatever `dtype` is: in bf16 positions above 256 would collide. `length` is that of
    the whole sequence, which dynamic scaling depends on; without it the largest position + 1.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic" and length is None:
        length = int(positions.max()) + 1
    frequency_C, scale = frequencies(config.head_dim, config.rope_theta, scaling, length or 0, positions.device)
    angles = positions.float().unsqueeze(-1) * frequency_C  # [*positions, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None,
    length: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, float]:
    """Radians per position of each pair, fp32 `[head_dim / 2]`, and the factor of cosine and sine."""
    exponent_C = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    if scaling is None:
        return 1 / theta**exponent_C, 1.0
    factor, original = scaling.factor, scaling.original_context or 0
    if scaling.kind == "dynamic":
        stretch = factor * max(length, original) / original - (factor - 1)
        return 1 / (theta * stretch ** (head_dim / (head_dim - 2))) ** exponent_C, 1.0
    plain_C = 1 / theta**exponent_C
    if scaling.kind == "linear":
        return plain_C / factor, 1.0
    if scaling.kind == "llama3":
        turns_C = original * plain_C / (2 * math.pi)  # within the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep_C = ((turns_C - low) / (high - low)).clamp(0, 1)
        return plain_C * (keep_C + (1 - keep_C) / factor), 1.0
    keep_C = 1 - _yarn_ramp(head_dim, theta, scaling, device)
    scale = scaling.attention_factor or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return plain_C * (keep_C + (1 - keep_C) / factor), scale


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling, device: torch.device | str) -> Tensor:
    """Share of interpolation per pair, rising from 0 to 1 (Peng et al. 2023, eq. 18-20)."""
    original = scaling.original_context or 0

    def dimension(turns: float) -> float:
        """Pair that turns so often within the original context."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    pairs_C = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    return ((pairs_C - low) / (high - low if high != low else 0.001)).clamp(0, 1)
