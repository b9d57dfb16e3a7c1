"""Best-fit-decreasing packing of documents into sequences (Ding et al. 2024, "Fewer Truncations Improve
Language Modeling").

A document of n tokens gives n - 1 inputs, each with the next token of the same document as its label.
Documents with more inputs than a sequence holds are cut into pieces of `seq_len`; the label of a piece's last
input is still the document's own next token, so every pair is seen exactly once. No truncation, and padding
only where no piece fits.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """`length` inputs of document `document` (an index into the packed list), from token `start` on."""

    document: int
    start: int
    length: int


def pack(lengths: Sequence[int], seq_len: int) -> list[list[Piece]]:
    """Pack documents of `lengths` tokens into sequences of at most `seq_len` inputs.

    Longest piece first, each into the sequence with the least room that still holds it. Deterministic; ties
    go to the earlier document and the earlier sequence. O(pieces x log pieces).
    """
    pieces = [
        Piece(document, start, min(seq_len, n - 1 - start))
        for document, n in enumerate(lengths)
        for start in range(0, n - 1, seq_len)
    ]
    pieces.sort(key=lambda p: -p.length)  # stable: equal lengths keep document order
    sequences: list[list[Piece]] = []
    open_: list[tuple[int, int]] = []  # (room, sequence), sorted
    for piece in pieces:
        at = bisect_left(open_, (piece.length, -1))
        if at < len(open_):
            room, sequence = open_.pop(at)
        else:
            room, sequence = seq_len, len(sequences)
            sequences.append([])
        sequences[sequence].append(piece)
        if room > piece.length:
            insort(open_, (room - piece.length, sequence))
    return sequences
