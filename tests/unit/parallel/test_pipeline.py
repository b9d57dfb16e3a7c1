"""Micro-batches of a pipeline: torch takes every number of them, and none of the sequences is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.batch import IGNORE
from moesaic.model import Transformer
from moesaic.parallel.cut import SequenceCut
from moesaic.parallel.engine import Engine, padded
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part, StepScale
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


STEPS = [(4, 1, 32), (8, 1, 32), (8, 1, 32), (4, 1, 32), (8, 2, 32), (8, 1, 16), (4, 1, 32)]  # rows, largest, length


def ramp(rank: int, schedule: str) -> list[tuple[bool, int, float]]:
    """For each step: whether its stages are those of the step before, how many schedules are kept, the loss."""
    layout = Layout.model_validate({"pp": 2, "schedule": schedule})
    engine = Engine(CONFIG, layout, World(rank, 2, torch.device("cpu")))
    engine.initialise(1)
    line = engine.pipeline
    assert line is not None
    found = []
    for rows, largest, seq in STEPS:
        stages = line._stages
        scale = StepScale(100, rows, torch.zeros(6, CONFIG.n_experts))
        loss = engine.accumulate(batch(1, CONFIG.vocab_size, rows, seq), largest, scale).loss
        assert len(line._stages) == 1
        found.append((line._stages is stages, len(line._schedules), float(loss)))
    return found


def test_stages_stay_while_only_the_number_of_micro_batches_changes_and_go_with_their_shape() -> None:
    for schedule in ("1f1b", "zero_bubble"):
        first, other = run_ranks(ramp, 2, schedule)
        assert first == other
        assert [kept for kept, _, _ in first] == [False, True, True, True, False, False, False]
        assert [schedules for _, schedules, _ in first] == [1, 2, 2, 2, 1, 1, 1]
        one = Engine(CONFIG, Layout(), World())
        one.initialise(1)
        for (rows, largest, seq), (_, _, loss) in zip(STEPS, first, strict=True):
            scale = StepScale(100, rows, torch.zeros(6, CONFIG.n_experts))
            expected = one.accumulate(batch(1, CONFIG.vocab_size, rows, seq), largest, scale).loss
            assert loss == pytest.approx(float(expected), rel=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 6))
def test_padding_is_empty(rows: int, more: int) -> None:
    data = batch(1, 64, rows, 8)
    full = padded(data, rows + more)
    assert full.tokens.shape[0] == rows + more
    assert torch.equal(full.labels[:rows], data.labels)
    assert (full.labels[rows:] == IGNORE).all()
    assert (full.documents[rows:] == -1).all()
