"""Row kernels: the C++ ones on bf16 equal torch in fp32 on the same numbers, but for one rounding to bf16.

Tolerance: rounding to bf16 is off by at most 2^-9 of the value; 2^-8 leaves room for values that are rounded once on
the way (a probability, a rotated half). Sums in fp32 over at most 700 terms of unit size are within 1e-4.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from moesaic.errors import ModelError
from moesaic.model import Transformer, initialise, next_token_loss
from moesaic.model.kernels import NativeRowKernels, RowKernels, agrees, choose_kernels, native
from tiny import batch, model

TORCH = RowKernels()
BF16 = {"rtol": 2**-8, "atol": 2**-8}
FP32 = {"rtol": 1e-4, "atol": 1e-4}
sizes = st.integers(1, 9), st.sampled_from([2, 6, 16, 40, 66, 130])


@pytest.fixture(scope="module")
def kernels() -> RowKernels:
    library = native.build()
    if isinstance(library, str):
        pytest.skip(library)
    return NativeRowKernels(library)


def numbers(seed: int, *shape: int) -> Tensor:
    """Unit normals that bf16 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = BF16 if a.dtype == torch.bfloat16 else FP32
        torch.testing.assert_close(a.float(), b.float(), **tolerance, msg=lambda m, n=i: f"result {n}: {m}")


@settings(max_examples=30)
@given(*sizes, st.integers(0, 2**31))
def test_norm_and_its_gradients(kernels: RowKernels, rows: int, width: int, seed: int) -> None:
    x, weight, dy = (
        numbers(seed, rows, 3, width).float(),
        numbers(seed + 1, width).float(),
        numbers(seed, rows, 3, width),
    )
    y, rstd = kernels.rms_norm(x, weight, 1e-5, torch.bfloat16)
    assert_agree((y, rstd), TORCH.rms_norm(x, weight, 1e-5, torch.float32))
    assert_agree(kernels.rms_norm_backward(x, weight, rstd, dy), TORCH.rms_norm_backward(x, weight, rstd, dy.float()))


def test_gradients_of_the_reference_norm_are_those_that_autograd_finds() -> None:
    x, weight = (numbers(i, *shape).double().requires_grad_() for i, shape in enumerate([(5, 8), (8,)]))
    pull = numbers(2, 5, 8).double()
    y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5) * weight
    theirs = torch.autograd.grad((y * pull).sum(), (x, weight))
    ours_y, rstd = TORCH.rms_norm(x.detach(), weight.detach(), 1e-5, torch.float32)
    ours = TORCH.rms_norm_backward(x.detach(), weight.detach(), rstd, pull)
    for a, b in zip((ours_y, *ours), (y, *theirs), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([2, 8, 64]), st.booleans(), st.integers(0, 2**31))
def test_rotation_of_a_slice(kernels: RowKernels, seq: int, heads: int, width: int, inverse: bool, seed: int) -> None:
    x = numbers(seed, 2, seq, heads + 2, width)[:, :, :heads]  # as the queries lie beside keys and values
    cos, sin = numbers(seed + 1, 2, seq, width), numbers(seed + 2, 2, seq, width)
    cos[..., width // 2 :], sin[..., width // 2 :] = cos[..., : width // 2], sin[..., : width // 2]
    theirs = TORCH.rotate(x.float(), cos.float(), sin.float(), inverse)
    assert_agree((kernels.rotate(x, cos, sin, inverse),), (theirs,))


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (1, 3), (2, 2)]),
    st.data(),
)
def test_visible_softmax(
    kernels: RowKernels, documents: list[list[int]], heads: tuple[int, int], data: st.DataObject
) -> None:
    kv_heads, group = heads
    seq = max(sum(row) for row in documents)
    starts = torch.zeros(len(documents), seq, dtype=torch.int64)
    for row, lengths in zip(starts, documents, strict=True):
        at = 0
        for length in [*lengths, seq - sum(lengths)]:
            row[at : at + length] = at
            at += length
    lo = data.draw(st.integers(0, seq - 1))
    hi = data.draw(st.integers(lo + 1, seq))
    first = data.draw(st.integers(0, int(starts[:, lo].min())))
    scores = numbers(seq, len(documents) * kv_heads, (hi - lo) * group, hi - first)
    theirs = TORCH.visible_softmax(scores.float(), starts, lo, hi, first)
    p = kernels.visible_softmax(scores.clone(), starts, lo, hi, first)
    assert_agree((p,), (theirs,))
    assert torch.equal(p == 0, theirs == 0)  # what is hidden is exactly nothing
    dp, delta = (
        numbers(1, *p.shape),
        torch.randn(p.shape[0], p.shape[1] + 5, generator=torch.Generator().manual_seed(2)),
    )
    wanted = TORCH.softmax_backward(dp.float(), p.float(), delta[:, : p.shape[1]])
    assert_agree((kernels.softmax_backward(dp.clone(), p, delta[:, : p.shape[1]]),), (wanted,))


@settings(max_examples=30)
@given(*sizes, st.integers(0, 2**31))
def test_swiglu_and_its_gradients(kernels: RowKernels, rows: int, width: int, seed: int) -> None:
    h, da, weight = numbers(seed, rows, 2 * width) * 3, numbers(seed + 1, rows, width), numbers(seed + 2, rows).float()
    assert_agree((kernels.swiglu(h, weight),), (TORCH.swiglu(h.float(), weight),))
    assert_agree(kernels.swiglu_backward(h, weight, da), TORCH.swiglu_backward(h.float(), weight, da.float()))


def test_gradients_of_the_reference_swiglu_are_those_that_autograd_finds() -> None:
    h, weight, pull = numbers(0, 5, 16).double(), numbers(1, 5).double(), numbers(2, 5, 8).double()
    h.requires_grad_()
    weight.requires_grad_()
    gate, up = h.chunk(2, dim=-1)
    theirs = torch.autograd.grad((gate * gate.sigmoid() * up * weight.unsqueeze(-1) * pull).sum(), (h, weight))
    _, dh, dweight = TORCH.swiglu_backward(h.detach().float(), weight.detach().float(), pull.float())
    for a, b in zip((dh, dweight), theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(*sizes, st.integers(1, 3), st.integers(0, 2**31))
def test_rows_of_a_token_are_summed(kernels: RowKernels, tokens: int, width: int, choices: int, seed: int) -> None:
    y = numbers(seed, tokens * choices + 4, width)
    place = torch.randint(0, y.shape[0], (tokens, choices), generator=torch.Generator().manual_seed(seed))
    assert_agree((kernels.sum_rows(y, place),), (TORCH.sum_rows(y.float(), place),))


@settings(max_examples=30)
@given(*sizes, st.integers(0, 2**31))
def test_cross_entropy_and_its_gradient(kernels: RowKernels, rows: int, vocabulary: int, seed: int) -> None:
    logits = numbers(seed, rows, vocabulary) * 5
    labels = torch.randint(-1, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    labels[labels < 0] = -100
    assert_agree(kernels.cross_entropy(logits.clone(), labels), TORCH.cross_entropy(logits.float(), labels))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kernels: RowKernels, value: float) -> None:
    h = numbers(0, 1, 8)
    h[0, 2] = value
    assert not kernels.swiglu(h, torch.ones(1)).isfinite().all()
    x = torch.tensor([[-1]], dtype=torch.int32).view(torch.float32)  # a NaN whose rounding would wrap around
    assert kernels.rms_norm(x, torch.ones(1), 1e-5, torch.bfloat16)[0].isnan().all()
    assert not kernels.cross_entropy(h.clone(), torch.tensor([0]))[0].isfinite()


def test_a_whole_step_loses_nothing_against_torch(kernels: RowKernels) -> None:
    """Gradients of a small model in bf16 with C++ kernels are as near to fp32 as those with torch's."""
    packed = batch([[30, 20], [50]], 64)

    def gradients(rows: RowKernels, dtype: torch.dtype) -> dict[str, Tensor]:
        net: Transformer = model(n_heads=4, n_kv_heads=2)
        initialise(net, 0)
        net.compute_dtype = dtype
        net.use_kernels(rows)
        hidden, _ = net.hidden(packed.tokens, packed.positions, packed.documents)
        next_token_loss(hidden.flatten(0, 1), net.head_weight, packed.labels.flatten(), net.kernels).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    exact, ours, theirs = gradients(TORCH, torch.float32), *(gradients(k, torch.bfloat16) for k in (kernels, TORCH))
    for name, gradient in exact.items():
        far, torch_far = (float((g[name] - gradient).norm() / gradient.norm()) for g in (ours, theirs))
        assert far < 1.5 * torch_far + 0.01, name
    alike = gradients(kernels, torch.float32)  # fp32 is torch's in both
    assert all(torch.equal(alike[name], exact[name]) for name in exact)


def test_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_kernels("torch", cpu)[0].name == "torch"
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    chosen, why = choose_kernels("auto", cpu)
    assert chosen.name == "torch"
    assert "no C++ compiler" in why
    with pytest.raises(ModelError, match=r"no C\+\+ compiler.*--kernels torch"):
        choose_kernels("native", cpu)


def test_what_disagrees_with_torch_is_not_used(kernels: RowKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agrees(kernels)
    assert choose_kernels("auto", torch.device("cpu"))[0].name == "native"
    assert choose_kernels("auto", torch.device("cpu"), bf16=False)[0].name == "torch"
    monkeypatch.setattr(NativeRowKernels, "rms_norm", lambda self, x, w, eps, dtype: (x.to(dtype), x[:, :1]))
    chosen, why = choose_kernels("auto", torch.device("cpu"))
    assert chosen.name == "torch"
    assert "disagree" in why


def test_a_library_cut_short_is_built_again(kernels: RowKernels, tmp_path: Path) -> None:
    assert not isinstance(native.build(cache=tmp_path), str)
    [library] = tmp_path.iterdir()
    library.unlink()  # not written over: this process runs the old one
    library.write_bytes(b"half")
    assert not isinstance(native.build(cache=tmp_path), str)


def test_labels_and_angles_that_do_not_fit_are_torchs_to_refuse(kernels: RowKernels) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        kernels.cross_entropy(numbers(0, 2, 8), torch.tensor([9, 1]))
    x, angle = numbers(0, 2, 3, 1, 4), numbers(1, 1, 3, 4)
    assert_agree((kernels.rotate(x, angle, angle),), (TORCH.rotate(x.float(), angle.float(), angle.float()),))


def test_tensors_without_an_address_go_to_torch(kernels: RowKernels) -> None:
    """Distributed and traced tensors look like ordinary ones and have no memory to point at."""
    with FakeTensorMode():
        h, weight = torch.empty(5, 16, dtype=torch.bfloat16), torch.empty(5)
        assert kernels.swiglu(h, weight).shape == (5, 8)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "FLAGS", ["--no-such-flag"])
    monkeypatch.setattr(native.shutil, "which", lambda name: "/usr/bin/false")
    assert "false: status 1" in str(native.build(cache=tmp_path))
    assert not list(tmp_path.iterdir())
