"""The rows of one step, laid out for a decoder: whose they are, where they stand, which need logits.

Legend: T rows (new positions of all requests), N requests in the step, R rows whose logits are wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesaic.serve.step_plan import Work

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class StepBatch:
    """Plain arrays, so that a decoder may live in another process."""

    tokens_T: Ints
    positions_T: Ints
    rows: tuple[range, ...]
    """Rows of each request."""
    blocks: tuple[tuple[int, ...], ...]
    """Blocks of each request, from its beginning."""
    wanted_R: Ints
    """Rows whose logits are wanted, in order."""

    @classmethod
    def of(cls, work: Sequence[Work], guesses: Sequence[Sequence[int]] | None = None) -> "StepBatch":
        """`guesses`: of a draft, for each request; their rows follow its tokens, and all need logits."""
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        rows: list[range] = []
        for i, w in enumerate(work):
            guessed = () if guesses is None else guesses[i]
            begin = len(tokens)
            tokens += w.tokens
            tokens += guessed
            positions += range(w.start, w.start + len(tokens) - begin)
            rows.append(range(begin, len(tokens)))
            if w.sample:
                wanted += range(begin + len(w.tokens) - 1, len(tokens))
        arrays = (np.array(values, dtype=np.int32) for values in (tokens, positions, wanted))
        tokens_T, positions_T, wanted_R = arrays
        return cls(tokens_T, positions_T, tuple(rows), tuple(w.blocks for w in work), wanted_R)
