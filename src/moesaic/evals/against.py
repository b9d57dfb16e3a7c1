"""One model against another: are the logits the same numbers?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesaic.data import Tokenizer
from moesaic.model import Transformer

TOKENS = 256  # of each document whose logits are compared


@dataclass(frozen=True)
class Difference:
    """How far the logits of two models are apart."""

    largest: float
    """Largest difference of any logit."""
    scale: float
    """Standard deviation of the old logits, to judge it by."""


@torch.inference_mode()
def compare_logits(old: Transformer, new: Transformer, tokenizer: Tokenizer, texts: Sequence[str]) -> Difference:
    """The largest difference between logits on the first 256 tokens of each text, in fp32."""
    largest, scale = 0.0, 0.0
    for text in texts:
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)][:TOKENS]
        tokens = torch.tensor([ids], device=old.embedding.device)
        a, b = old(tokens).float(), new(tokens).float()
        largest = max(largest, float((a - b).abs().max()))
        scale = max(scale, float(a.std()))
    return Difference(largest, scale)
