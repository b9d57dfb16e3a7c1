"""What a training step takes: packed sequences with labels, documents and positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from moesaic.data.packing import Piece

IGNORE = -100  # label without loss, as torch.nn.functional.cross_entropy ignores it
PADDING = -1  # document id of padding


@dataclass(frozen=True)
class Batch:
    """Packed sequences. Legend: B sequences, S tokens each."""

    tokens: torch.Tensor
    """Inputs, int64 [B, S]; padding holds the end-of-text id."""
    labels: torch.Tensor
    """Next token of the same document, int64 [B, S]; -100 where nothing is to be learned."""
    documents: torch.Tensor
    """Number of the document piece within its row, int64 [B, S]; -1 is padding. Attention stays inside one
    number."""
    positions: torch.Tensor
    """Position within the document piece, int64 [B, S]; starts at 0 in each."""
    source_tokens: dict[str, int] = field(default_factory=dict)
    """Inputs of the global batch that are not padding, by source. Tokens."""
    of_sequences: int = 0
    """Sequences of the global batch when these are one rank's share of it; 0: these are all."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        tokens, labels, documents, positions = (
            t.to(device) for t in (self.tokens, self.labels, self.documents, self.positions)
        )
        return Batch(tokens, labels, documents, positions, self.source_tokens, self.of_sequences)

    @property
    def sequences(self) -> int:
        """Sequences of the global batch."""
        return self.of_sequences or self.tokens.shape[0]

    @property
    def input_tokens(self) -> int:
        """Inputs of the global batch that are not padding. Tokens."""
        return sum(self.source_tokens.values())


def fill_row(
    row: list[Piece],
    docs: Mapping[int, NDArray[np.generic]],
    masks: Mapping[int, NDArray[np.generic] | None],
    out: Sequence[NDArray[np.int64]],
) -> None:
    """Write one packed sequence into rows (tokens, labels, documents, positions), each int64 [S] and full of
    padding.

    `docs` and `masks` hold the tokens [n] and the loss mask [n] (None: learn all) of each document that the
    row names.
    """
    tokens, labels, documents, positions = out
    at = 0
    for number, (document, start, length) in enumerate(row):
        here = slice(at, at + length)
        tokens[here] = docs[document][start : start + length]
        labels[here] = docs[document][start + 1 : start + 1 + length]
        mask = masks[document]
        if mask is not None:
            labels[here][mask[start + 1 : start + 1 + length] == 0] = IGNORE
        documents[here] = number
        positions[here] = np.arange(length)
        at += length


def to_batch(arrays: Sequence[NDArray[np.int64]], source_tokens: dict[str, int], of_sequences: int = 0) -> Batch:
    """A Batch over the memory of (tokens, labels, documents, positions), each [B, S]."""
    tokens, labels, documents, positions = (torch.from_numpy(a) for a in arrays)
    return Batch(tokens, labels, documents, positions, source_tokens, of_sequences)


def empty_rows(
    sequences: int, seq_len: int, pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Arrays [B, S] of (tokens, labels, documents, positions) that hold nothing but padding."""
    shape = (sequences, seq_len)
    return (
        np.full(shape, pad_id, np.int64),
        np.full(shape, IGNORE, np.int64),
        np.full(shape, PADDING, np.int64),
        np.zeros(shape, np.int64),
    )
