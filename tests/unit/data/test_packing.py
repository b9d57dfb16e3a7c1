"""Packing loses nothing, repeats nothing, and never lets a label cross from one document into another."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.batch import IGNORE, PADDING, empty_rows, fill_row
from moesaic.data.packing import pack

lengths = st.lists(st.integers(0, 60), max_size=40)
seq_lens = st.integers(1, 24)


def fill(sizes: list[int], seq_len: int) -> tuple[np.ndarray, ...]:
    """Every token of every document is a number of its own, so that a pair can only come from one place."""
    starts = np.cumsum([0, *sizes])
    docs = {i: np.arange(starts[i], starts[i + 1]) + 1 for i in range(len(sizes))}
    rows = pack(sizes, seq_len)
    arrays = empty_rows(len(rows), seq_len, pad_id=0)
    for i, row in enumerate(rows):
        fill_row(row, docs, dict.fromkeys(docs), [a[i] for a in arrays])
    return arrays


@given(lengths, seq_lens)
def test_every_pair_of_input_and_label_is_there_exactly_once(sizes: list[int], seq_len: int) -> None:
    tokens, labels, documents, _ = fill(sizes, seq_len)
    real = documents != PADDING
    found = sorted(zip(tokens[real].tolist(), labels[real].tolist(), strict=True))
    ends = np.cumsum([0, *sizes]).tolist()
    wanted = [(t, t + 1) for a, b in itertools.pairwise(ends) for t in range(a + 1, b)]
    assert found == wanted  # a label that crossed a boundary would be the first token of another document
    assert (labels[~real] == IGNORE).all()
    assert (tokens[~real] == 0).all()


@given(lengths, seq_lens)
def test_positions_restart_in_each_piece_and_pieces_are_contiguous(sizes: list[int], seq_len: int) -> None:
    tokens, _, documents, positions = fill(sizes, seq_len)
    for row in range(len(tokens)):
        for number in range(documents[row].max(initial=-1) + 1):
            where = np.flatnonzero(documents[row] == number)
            assert (np.diff(where) == 1).all()
            assert (np.diff(tokens[row][where]) == 1).all()
            assert positions[row][where].tolist() == list(range(len(where)))


@given(lengths, seq_lens)
def test_packing_is_deterministic_and_no_sequence_overflows(sizes: list[int], seq_len: int) -> None:
    rows = pack(sizes, seq_len)
    assert rows == pack(list(sizes), seq_len)
    assert all(0 < sum(p.length for p in row) <= seq_len for row in rows)


@given(lengths, seq_lens)
@settings(max_examples=50)
def test_best_fit_puts_no_two_half_empty_sequences_that_would_fit_together(sizes: list[int], seq_len: int) -> None:
    used = [sum(p.length for p in row) for row in pack(sizes, seq_len)]
    # Any two sequences hold more than one together, else the later one's largest piece had found room before.
    assert sum(2 * u <= seq_len for u in used) <= 1


def test_a_long_document_is_cut_without_losing_the_label_at_the_cut() -> None:
    tokens, labels, *_ = fill([11], 4)
    at = np.flatnonzero(tokens[:, -1] == 4)[0]
    assert labels[at, -1] == 5  # token 5 opens the next piece and is still the label of token 4


def test_fill_leaves_out_the_loss_where_the_mask_says_so() -> None:
    arrays = empty_rows(1, 8, pad_id=0)
    mask = np.array([0, 0, 1, 1, 0], np.uint8)
    fill_row(pack([5], 8)[0], {0: np.arange(10, 15)}, {0: mask}, [a[0] for a in arrays])
    assert arrays[1][0].tolist() == [IGNORE, 12, 13, IGNORE] + [IGNORE] * 4
