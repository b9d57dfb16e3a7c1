"""Choosing tokens (row by row for now)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moesaic.model.generate import choose as choose_one
from moesaic.serve.options import Options
from moesaic.serve.step_plan import PLAIN, TokenNote


class RowState:
    """What choosing needs of a request."""

    def __init__(self, options: Options, prompt: Sequence[int]) -> None:
        self.options, self.seen = options, list(prompt)
        self.generator = torch.Generator().manual_seed(options.seed)

    def note(self, token: int) -> None:
        """A token is certain."""
        self.seen.append(token)


def choose(logits_RV: Tensor, rows: Sequence[RowState]) -> tuple[list[int], list[TokenNote]]:
    """One token for each row."""
    tokens = [choose_one(logits_V, r.options, r.seen, r.generator) for logits_V, r in zip(logits_RV, rows, strict=True)]
    return tokens, [PLAIN] * len(tokens)
