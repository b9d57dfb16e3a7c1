"""Attention: the chunked path equals torch's operator, the cache equals the whole, RoPE equals complex numbers.

Tolerance: with operands of unit size, sums over at most 100 keys in fp32 differ by their order, by less than 1e-5.
"""

from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.model import Cache
from moesaic.model import attend as attend_module
from moesaic.model.attend import Visibility, attend_reference
from moesaic.model.attend import attend as attend_with
from moesaic.model.kernels import RowKernels
from moesaic.model.rotary import rotary_table
from moesaic.recipe import Model
from tiny import batch, model

FP32 = {"atol": 1e-5, "rtol": 1e-5}
CHUNK = 16  # instead of 128, so that short sequences have many edges
NAMES = ("output", "q", "k", "v")
attend = partial(attend_with, kernels=RowKernels())


def shape(head_dim: int, theta: float = 10_000.0) -> Model:
    return Model(vocab_size=8, d_model=8, n_layers=1, n_heads=1, d_ff=8, head_dim=head_dim, rope_theta=theta)


def outputs_and_gradients(function: object, operands: list[Tensor], sight: Visibility, pull: Tensor) -> list[Tensor]:
    q, k, v = (t.clone().requires_grad_() for t in operands)
    out = function(q, k, v, sight)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad((out * pull).sum(), (q, k, v))]


def assert_paths_agree(
    documents_BS: Tensor | None,
    batch_seq: tuple[int, int],
    heads: int,
    kv_heads: int,
    seed: int = 0,
    width: int = 8,
    window: int | None = None,
) -> None:
    g = torch.Generator().manual_seed(seed)
    q, pull = (torch.randn(*batch_seq, heads, width, generator=g) for _ in range(2))
    k, v = (torch.randn(*batch_seq, kv_heads, width, generator=g) for _ in range(2))
    sight = Visibility.of(torch.zeros(batch_seq, dtype=torch.int64), documents_BS, window)
    ours = outputs_and_gradients(attend, [q, k, v], sight, pull)
    theirs = outputs_and_gradients(attend_reference, [q, k, v], sight, pull)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **FP32, msg=lambda m, n=name: f"{n}: {m}")


@st.composite
def packed(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """Sequence length, and for each row the lengths of its documents; what is left is padding."""
    seq = draw(st.integers(1, 70))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        lengths, room = [], seq
        while room and draw(st.booleans()):
            lengths.append(draw(st.integers(1, room)))
            room -= lengths[-1]
        rows.append(lengths or [seq])
    return seq, rows


@settings(max_examples=80)
@given(packed(), st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (4, 4)]), st.integers(0, 2**31))
@example((48, [[17, 14], [16, 32], [48]]), (4, 1), 0)
def test_packed_documents_with_padding(case: tuple[int, list[list[int]]], heads: tuple[int, int], seed: int) -> None:
    seq, rows = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend_module, "CHUNK", CHUNK)
        assert_paths_agree(batch(rows, seq).documents, (len(rows), seq), *heads, seed=seed)


WINDOWS = st.sampled_from([1, 2, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3, 200])


@settings(max_examples=60)
@given(packed(), WINDOWS, st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4)]), st.integers(0, 2**31))
@example((48, [[17, 14], [16, 32], [48]]), CHUNK // 2, (4, 1), 0)
def test_packed_documents_within_a_window(
    case: tuple[int, list[list[int]]], window: int, heads: tuple[int, int], seed: int
) -> None:
    """Windows shorter and longer than a chunk, forward and gradients, with and without documents."""
    seq, rows = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend_module, "CHUNK", CHUNK)
        for documents_BS in (batch(rows, seq).documents, None):
            assert_paths_agree(documents_BS, (len(rows), seq), *heads, seed=seed, window=window)


@settings(max_examples=60)
@given(packed(), st.one_of(st.none(), WINDOWS))
def test_visibility_is_the_mask_that_the_words_say(case: tuple[int, list[list[int]]], window: int | None) -> None:
    """A query sees a key of its own document that is not later than itself and less than `window` before it."""
    seq, rows = case
    documents_BS = batch(rows, seq).documents
    allowed_BSS = Visibility.of(documents_BS, documents_BS, window).allowed
    plain_BSS = Visibility.of(documents_BS, None, window).allowed
    for b, row in enumerate(documents_BS.tolist()):
        near = [[k <= q and (window is None or q - k < window) for k in range(seq)] for q in range(seq)]
        assert plain_BSS[b].tolist() == near
        same = [[near[q][k] and row[k] == row[q] for k in range(seq)] for q in range(seq)]
        assert allowed_BSS[b].tolist() == same


def test_keys_before_the_window_of_a_chunk_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_module, "CHUNK", CHUNK)
    tokens_BS = torch.zeros(1, 4 * CHUNK, dtype=torch.int64)
    assert Visibility.of(tokens_BS, None, 1).first_key == (0, CHUNK, 2 * CHUNK, 3 * CHUNK)
    assert Visibility.of(tokens_BS, None, 2).first_key == (0, 0, CHUNK, 2 * CHUNK)
    assert Visibility.of(tokens_BS, None, CHUNK + 2).first_key == (0, 0, 0, CHUNK)


@pytest.mark.parametrize("heads", [(4, 1), (4, 2), (4, 4)], ids=["MQA", "GQA", "MHA"])
@pytest.mark.parametrize("seq", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_plain_causal_around_the_edges_of_chunks(
    monkeypatch: pytest.MonkeyPatch, seq: int, heads: tuple[int, int]
) -> None:
    monkeypatch.setattr(attend_module, "CHUNK", CHUNK)
    assert_paths_agree(None, (2, seq), *heads)


@pytest.mark.parametrize("seq", [attend_module.CHUNK - 1, attend_module.CHUNK, attend_module.CHUNK + 1, 300])
def test_with_the_chunk_that_training_uses(seq: int) -> None:
    assert_paths_agree(batch([[seq // 3, seq // 2], [seq]], seq).documents, (2, seq), 4, 1)


def test_a_query_sees_its_document_up_to_itself_and_nothing_else() -> None:
    documents_BS = torch.tensor([[0, 0, 0, 1, 1, -1]])
    allowed = Visibility.of(documents_BS, documents_BS).allowed[0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_keys_before_every_document_of_a_chunk_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second document that begins with the third chunk: its queries start their products there."""
    monkeypatch.setattr(attend_module, "CHUNK", CHUNK)
    documents_BS = batch([[2 * CHUNK, 2 * CHUNK], [2 * CHUNK + 1, 2 * CHUNK - 1]], 4 * CHUNK).documents
    assert Visibility.of(documents_BS[:1], documents_BS[:1]).first_key == (0, 0, 2 * CHUNK, 2 * CHUNK)
    assert Visibility.of(documents_BS, documents_BS).first_key == (0, 0, 0, 2 * CHUNK)


def test_above_the_limit_the_operator_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_module, "CHUNKED_LIMIT", 20)
    q, k, v = (torch.randn(1, 21, n, 8, generator=torch.Generator().manual_seed(0)) for n in (4, 1, 1))
    sight = Visibility.of(torch.zeros(1, 21), None)
    assert torch.equal(attend(q, k, v, sight), attend_reference(q, k, v, sight))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("parts", [[1] * 20, [7, 13], [19, 1], [20], [5, 1, 1, 13]])
def test_decoding_with_a_cache_equals_the_whole(kv_heads: int, parts: list[int]) -> None:
    built = model(n_kv_heads=kv_heads)
    tokens_BS = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = built(tokens_BS)
        cache = Cache(built.config, batch=2, capacity=20, dtype=torch.float32)
        pieces = [built(part, cache=cache) for part in tokens_BS.split(parts, dim=1)]
    # Logits of this model reach about 10.
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-5, rtol=1e-5)


def test_the_model_with_the_reference_swapped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_batch = batch([[9, 20, 1], [30], [4]], 34)

    def run() -> list[Tensor]:
        built = model(init_std=0.1)
        logits = built(packed_batch.tokens, packed_batch.positions, packed_batch.documents)
        real = packed_batch.documents >= 0
        torch.nn.functional.cross_entropy(logits[real], packed_batch.labels[real]).backward()
        return [logits.detach()[real], *(p.grad for p in built.parameters())]  # type: ignore[misc]

    fast = run()
    monkeypatch.setattr(
        "moesaic.model.attention.attend", lambda q, k, v, sight, kernels: attend_reference(q, k, v, sight)
    )
    for ours, theirs in zip(fast, run(), strict=True):
        torch.testing.assert_close(ours, theirs, **FP32)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=9),
    st.integers(1, 8).map(lambda n: 2 * n),
    st.sampled_from([100.0, 10_000.0, 5e6]),
)
def test_rope_is_a_rotation_in_the_complex_plane(positions: list[int], width: int, theta: float) -> None:
    """Feature i and i + width/2 are one complex number, turned by position * theta^(-2 i / width)."""
    position_BS = torch.tensor([positions])
    x = torch.randn(1, len(positions), 3, width, generator=torch.Generator().manual_seed(width))
    ours = RowKernels().rotate(x, *rotary_table(position_BS, shape(width, theta), torch.float32))
    frequency = theta ** -(torch.arange(width // 2, dtype=torch.float64) * 2 / width)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), position_BS.double()[..., None] * frequency)
    z = torch.complex(x[..., : width // 2].double(), x[..., width // 2 :].double()) * turn.unsqueeze(2)
    # fp32 holds an angle of 40,000 radians to 2^-9: the error grows with the position, as in every implementation.
    tolerance = 1e-5 + max(positions) * 2**-22
    torch.testing.assert_close(ours.double(), torch.cat((z.real, z.imag), dim=-1), atol=tolerance, rtol=0)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(query_at: int, key_at: int) -> float:
        turned = [
            RowKernels().rotate(x, *rotary_table(torch.tensor([[at]]), shape(8), torch.float32))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-5)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-2)


def test_angles_are_fp32_in_a_bf16_model() -> None:
    cos, _ = rotary_table(torch.arange(256, 260), shape(8), torch.bfloat16)
    assert len(set(cos[:, 0].tolist())) == 4
