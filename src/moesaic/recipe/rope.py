"""How rotary frequencies are stretched for contexts longer than those of pre-training."""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part

NEEDS_ORIGINAL = ("yarn", "llama3", "dynamic")


class RopeScaling(Part):
    """Scaling of rotary frequencies. What a kind does not use stays at its default."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    """Positions divided by `factor` (Chen et al. 2023); base grown with the length (dynamic NTK); NTK by parts (Peng et al. 2023); by wavelength (Llama 3). | none | imported weights ask for it."""
    factor: PositiveFloat
    """How many times longer the context becomes. | factor | the context grows."""
    original_context: PositiveInt | None = None
    """Context of pre-training; all kinds but linear need it. | tokens | imported weights ask for it."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: wavelengths above original_context over this are stretched by `factor`. | factor | rarely."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: wavelengths below original_context over this stay. | factor | rarely."""
    beta_fast: PositiveFloat = 32.0
    """yarn: frequencies that turn more often than this within original_context stay. | turns | rarely."""
    beta_slow: PositiveFloat = 1.0
    """yarn: frequencies that turn less often than this are stretched by `factor`. | turns | rarely."""
    attention_factor: PositiveFloat | None = None
    """yarn: cosine and sine are multiplied by it; none is 0.1 ln(factor) + 1. | factor | rarely."""
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions. | none | imported weights ask for it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind in NEEDS_ORIGINAL and self.original_context is None:
            raise ValueError(f"rope_scaling of kind {self.kind!r} needs original_context, the context of pre-training")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("rope_scaling: high_freq_factor must exceed low_freq_factor")
        return self
