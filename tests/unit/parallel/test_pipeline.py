"""Micro-batches of a pipeline: torch takes every number of them, and none of the sequences is lost."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.batch import IGNORE
from moesaic.model import Transformer
from moesaic.parallel.cut import SequenceCut
from moesaic.parallel.engine import padded
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part
from moesaic.parallel.pipeline import Pipeline
from moesaic.parallel.stages import micro_batches, piece_of, split_layers
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.train.verify import MODEL, batch
from ranks import run_ranks

CONFIG = MODEL.model_copy(update={"n_layers": 6})


@given(
    st.integers(2, 9),
    st.sampled_from(["1f1b", "interleaved", "zero_bubble"]),
    st.integers(1, 300),
    st.integers(1, 16),
)
def test_micro_batches_hold_all_rows_and_fill_the_pipeline(pp: int, schedule: str, rows: int, largest: int) -> None:
    size, count = micro_batches(Layout.model_validate({"pp": pp, "schedule": schedule, "chunks": 2}), rows, largest)
    assert 1 <= size <= largest
    assert size * count >= rows
    assert count >= pp * (2 if schedule == "zero_bubble" else 1)
    if schedule == "interleaved":
        assert count % max(1, count // pp) == 0


def constructs(rank: int, pp: int, schedule: str, chunks: int, cases: list[tuple[int, int]]) -> list[int]:
    """torch's schedules check their number of micro-batches when made."""
    layout = Layout.model_validate({"pp": pp, "schedule": schedule, "chunks": chunks})
    meshes = Meshes(layout, World(rank, pp, torch.device("cpu")))
    ranges, pieces = split_layers(CONFIG, pp * layout.chunks_per_rank), piece_of(layout, meshes.place.pp)
    with torch.device("meta"):
        model = Transformer(CONFIG)
    cut = SequenceCut.of(meshes)
    parts = [Part(model, ranges[n], n == 0, n == len(ranges) - 1, cut) for n in pieces]
    line = Pipeline(parts, pieces, meshes)
    counts = []
    for rows, largest in cases:
        size, count = micro_batches(layout, rows, largest)
        line._schedule(count, size, 32)
        counts.append(count)
    return counts


def test_torch_takes_every_number_of_micro_batches() -> None:
    cases = [(rows, largest) for rows in range(1, 26) for largest in (1, 2, 5)]
    for pp, schedule, chunks in ((2, "1f1b", 1), (2, "interleaved", 3), (3, "interleaved", 2), (3, "zero_bubble", 2)):
        first, *others = run_ranks(constructs, pp, pp, schedule, chunks, cases)
        assert len(set(first)) > 3
        assert all(other == first for other in others)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 6))
def test_padding_is_empty(rows: int, more: int) -> None:
    data = batch(1, 64, rows, 8)
    full = padded(data, rows + more)
    assert full.tokens.shape[0] == rows + more
    assert torch.equal(full.labels[:rows], data.labels)
    assert (full.labels[rows:] == IGNORE).all()
    assert (full.documents[rows:] == -1).all()
