"""The decoders of serving: paged keys and values against the contiguous cache, C++ against torch, and row against row.

A scenario feeds several sequences through a decoder in pieces, as a scheduler would, and collects the logits of every
position.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from moesaic.model import Transformer
from moesaic.model.transformer import initialise
from moesaic.recipe import Model
from moesaic.serve.batch import StepBatch
from moesaic.serve.decoder import Decoder, TorchDecoder
from moesaic.serve.native import BLOCK_SIZE, NativeDecoder, Packer, open_library, uncovered
from moesaic.serve.step_plan import Work

LENGTHS = (37, 5, 64, 21)
CONTEXT = 96
BLOCKS = 40
ROWS = 200

BASE: dict[str, Any] = {
    "vocab_size": 200, "d_model": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32,
    "n_experts": 8, "top_k": 2, "context": CONTEXT, "tie_embeddings": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mqa": {},
    "gqa of 3": {"n_heads": 6, "n_kv_heads": 2},
    "gqa of 6": {"n_heads": 6, "n_kv_heads": 1, "head_dim": 32},
    "mha": {"n_kv_heads": 4},
    "heads that end within a panel": {"n_heads": 3},
    "dense and tied": {"n_experts": 1, "top_k": 1, "tie_embeddings": True},
    "a dense layer": {"dense_layers": [1], "dense_d_ff": 96},
    "window": {"window": 19},
    "biases": {"attention_bias": True},
    "norm of heads": {"qk_norm": "head"},
    "clipped": {"clip_qkv": 0.2},
    "weights not renormalised": {"norm_top_k": False, "top_k": 3},
    "yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 24}},
    "an odd vocabulary": {"vocab_size": 203},
}


def model(dtype: torch.dtype, **changes: Any) -> Transformer:
    """Weights large enough that every part matters."""
    built = Transformer(Model.model_validate(BASE | changes))
    initialise(built, seed=1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            if name.endswith("norm.weight") or name.split(".")[-1].startswith("b"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= 6
    built.to(dtype)
    built.compute_dtype = dtype
    return built.requires_grad_(False)


def native(of: Transformer, threads: int = 1) -> NativeDecoder:
    library = open_library()
    assert not isinstance(library, str), library
    assert uncovered(of) is None
    return NativeDecoder(of, library, BLOCKS, CONTEXT, threads, rows=ROWS)


def tokens(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(200) for _ in range(length)]


def alone(of: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Logits `[length, vocab]` of one pass without a cache."""
    with torch.inference_mode():
        logits: torch.Tensor = of(torch.tensor([ids]))[0].float()
    return logits


def served(decoder: Decoder, sequences: Sequence[Sequence[int]], seed: int, most: int = 24) -> list[torch.Tensor]:
    """Logits of every position of each sequence, computed in pieces of random sizes beside one another."""
    draw = random.Random(seed)
    free = list(range(BLOCKS))
    draw.shuffle(free)
    tables = [tuple(free.pop() for _ in range(-(-len(ids) // BLOCK_SIZE))) for ids in sequences]
    done = [0] * len(sequences)
    found: list[list[torch.Tensor]] = [[] for _ in sequences]
    while any(d < len(ids) for d, ids in zip(done, sequences, strict=True)):
        going = [i for i, ids in enumerate(sequences) if done[i] < len(ids) and draw.random() < 0.7]
        if not going:
            continue
        pieces = [tuple(sequences[i][done[i] : done[i] + draw.randint(1, most)]) for i in going]
        # As guesses, so that the logits of every row are wanted.
        work = [Work(i, done[i], p[:1], tables[i], sample=True) for i, p in zip(going, pieces, strict=True)]
        logits_RV, counts_LE = decoder.step(StepBatch.of(work, [p[1:] for p in pieces]))
        assert counts_LE.shape[0] == 0 or counts_LE.sum(axis=1).min() == counts_LE.sum(axis=1).max() > 0
        at = 0
        for i, piece in zip(going, pieces, strict=True):
            found[i].append(logits_RV[at : at + len(piece)].clone())
            done[i] += len(piece)
            at += len(piece)
    return [torch.cat(logits) for logits in found]


SEQUENCES = [tokens(n, length) for n, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["torch", "torch, batch-invariant", "native"])
def test_fp32_equals_a_pass_without_cache(name: str, kind: str) -> None:
    """Sums in another order: 2e-4 of logits that spread over several units."""
    of = model(torch.float32, **MODELS[name])
    decoder = native(of) if kind == "native" else TorchDecoder(of, BLOCKS, BLOCK_SIZE, "invariant" in kind)
    for ids, found in zip(SEQUENCES, served(decoder, SEQUENCES, seed=2), strict=True):
        wanted = alone(of, ids)
        assert wanted.std() > 0.3
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["mqa", "gqa of 3", "dense and tied", "biases", "an odd vocabulary"])
def test_bf16_rounds_no_worse_than_torch(name: str) -> None:
    """Against the same weights in fp32, on the positions whose experts agree; the residual stream is fp32 in C++."""
    of, wide = model(torch.bfloat16, **MODELS[name]), model(torch.bfloat16, **MODELS[name]).float()
    wide.compute_dtype = torch.float32
    for ids, found in zip(SEQUENCES, served(native(of), SEQUENCES, seed=2), strict=True):
        ours, torchs = ((x - alone(wide, ids)).abs().median() for x in (found, alone(of, ids)))
        assert ours < 1.2 * torchs


@pytest.mark.parametrize("name", ["mqa", "gqa of 6", "window", "a dense layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["torch", "native"])
def test_rows_do_not_depend_on_what_is_beside_them(name: str, dtype: torch.dtype, kind: str) -> None:
    """Bit for bit: alone, beside others, in pieces of other sizes, on one thread and on two."""
    of = model(dtype, **MODELS[name])

    def decoder(threads: int) -> Decoder:
        return native(of, threads) if kind == "native" else TorchDecoder(of, BLOCKS, BLOCK_SIZE, batch_invariant=True)

    whole = served(decoder(1), SEQUENCES, seed=3, most=40)
    for seed, most, threads in ((4, 1, 1), (5, 7, 2)):
        for found, wanted in zip(served(decoder(threads), SEQUENCES, seed, most), whole, strict=True):
            assert torch.equal(found, wanted)
    for ids, wanted in zip(SEQUENCES, whole, strict=True):
        assert torch.equal(served(decoder(1), [ids], seed=6)[0], wanted)


def test_without_the_mode_rows_do_depend() -> None:
    """Else the test above would show nothing."""
    of = model(torch.float32)
    decoder = TorchDecoder(of, BLOCKS, BLOCK_SIZE)
    together, apart = served(decoder, SEQUENCES, seed=3, most=40), served(decoder, SEQUENCES, seed=4, most=1)
    assert not all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_counts_are_those_of_the_rows() -> None:
    """Of both decoders the same, padding not counted."""
    of = model(torch.float32, dense_layers=[1])
    work = [Work(0, 0, tuple(SEQUENCES[0]), (3, 1, 2), sample=False), Work(1, 0, (7,), (5,), sample=True)]
    counts = [
        decoder.step(StepBatch.of(work))[1]
        for decoder in (native(of), TorchDecoder(of, BLOCKS, BLOCK_SIZE, True), TorchDecoder(of, BLOCKS, BLOCK_SIZE))
    ]
    assert counts[0].shape == (2, 8)
    assert counts[0].sum(axis=1).tolist() == [76, 76]
    assert all(np.array_equal(counts[0], other) for other in counts[1:])


def test_packing_keeps_every_weight() -> None:
    library = open_library()
    assert not isinstance(library, str)
    pack = Packer(library, threads=2)
    w_NK = torch.arange(70 * 6, dtype=torch.float32).view(70, 6)
    fp32, bf16 = pack.columns(w_NK, torch.float32), pack.columns(w_NK, torch.bfloat16)
    assert fp32.shape == (3, 6, 32, 1)
    assert bf16.shape == (3, 3, 32, 2)
    for n in (0, 31, 32, 69):
        assert torch.equal(fp32[n // 32, :, n % 32, 0], w_NK[n])
        assert torch.equal(bf16[n // 32, :, n % 32].flatten(), w_NK[n].bfloat16())
    assert not fp32[2, :, 70 - 64 :].any()
    w_E2FD = torch.arange(3 * 2 * 32 * 4, dtype=torch.float32).view(3, 2, 32, 4)
    gated = pack.gated(w_E2FD, torch.float32)
    assert gated.shape == (6, 4, 32, 1)
    for e, f in ((0, 0), (1, 15), (2, 16), (2, 31)):
        panel = gated[2 * e + f // 16, :, :, 0]
        assert torch.equal(panel[:, f % 16], w_E2FD[e, 0, f])
        assert torch.equal(panel[:, 16 + f % 16], w_E2FD[e, 1, f])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qk_norm": "all"}, "norm over all heads"),
        ({"d_model": 72}, "width that 32"),
        ({"d_ff": 40}, "inner width"),
        ({"head_dim": 24}, "head width"),
        ({"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_context": 24}}, "dynamic"),
        ({"n_experts": 1, "top_k": 1, "mlp_bias": True}, "biases of experts"),
    ],
)
def test_what_is_not_covered_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in str(uncovered(model(torch.float32, **changes)))


def test_a_step_larger_than_the_scratch_is_refused() -> None:
    """Before C++ writes past its end: too many rows, a position beyond the longest sequence."""
    decoder = native(model(torch.float32))
    many = [Work(0, 0, (1,), (0,), sample=True)] * (ROWS + 1)
    far = [Work(0, CONTEXT, (1,), tuple(range(CONTEXT // BLOCK_SIZE + 1)), sample=True)]
    for work in (many, far):
        with pytest.raises(ValueError, match="larger than the scratch"):
            decoder.step(StepBatch.of(work))
