"""Pieces of a sequence: every position on one rank, pairs of pieces that cost alike."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.model.attend import Visibility
from moesaic.parallel.cut import Pieces, SequenceCut
from moesaic.parallel.meshes import Place
from moesaic.recipe import Layout


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_every_position_is_on_one_rank(cp: int, tp: int, unit: int) -> None:
    seq = 2 * cp * tp * unit
    positions = torch.arange(seq).unsqueeze(0)
    seen = []
    for c in range(cp):
        for t in range(tp):
            cut = SequenceCut(cp_size=cp, cp_rank=c, tp_size=tp, tp_rank=t)
            mine = cut.tensor(cut.context(positions))
            assert mine.shape[1] == cut.local_length(seq)
            seen += mine[0].tolist()
    assert sorted(seen) == list(range(seq))


@given(st.integers(2, 6), st.integers(1, 4))
def test_every_context_rank_looks_at_as_many_keys(cp: int, unit: int) -> None:
    seq = 2 * cp * unit
    keys = torch.arange(1, seq + 1).unsqueeze(0)  # position p sees p + 1 keys
    costs = {int(SequenceCut(cp_size=cp, cp_rank=c).context(keys).sum()) for c in range(cp)}
    assert len(costs) == 1


@given(st.integers(2, 4), st.integers(0, 2**30), st.none() | st.integers(1, 9))
def test_pieces_see_what_the_whole_sees(cp: int, seed: int, window: int | None) -> None:
    seq = 4 * cp
    documents = (torch.rand(2, seq, generator=torch.Generator().manual_seed(seed)) < 0.2).long().cumsum(dim=1)
    whole = Visibility.of(documents, documents, window)
    for c in range(cp):
        cut = SequenceCut(cp_size=cp, cp_rank=c)
        sight = cut.sight(whole, seq)
        assert isinstance(sight, Pieces)
        for piece, (begin, end) in zip((sight.front, sight.back), cut.bounds(seq), strict=True):
            assert torch.equal(piece.allowed, whole.allowed[:, begin:end, :end])
            assert not whole.allowed[:, begin:end, end:].any()


def test_a_context_of_one_sees_the_whole() -> None:
    documents = torch.zeros(1, 8, dtype=torch.int64)
    whole = Visibility.of(documents, documents)
    assert SequenceCut().sight(whole, 8) is whole


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_places_are_all_different_and_tensor_is_fastest(pp: int, dp: int, cp: int, tp: int) -> None:
    layout = Layout(pp=pp, dp=dp, cp=cp, tp=tp)
    places = [Place.of(rank, layout) for rank in range(layout.world)]
    assert len(set(places)) == layout.world
    assert places == sorted(places, key=lambda p: (p.pp, p.dp, p.cp, p.tp))
    assert places[-1] == Place(pp - 1, dp - 1, cp - 1, tp - 1)
