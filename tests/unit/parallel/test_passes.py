"""Zero-bubble schedules ask for gradients of inputs and of weights in two passes: together they do the work of one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._python_dispatch import TorchDispatchMode

from moesaic.model.experts import Experts
from moesaic.model.kernels import RowKernels
from moesaic.model.next_token import next_token_loss
from moesaic.model.norm import RMSNorm
from moesaic.model.router import Routing
from moesaic.parallel.engine import Engine
from moesaic.parallel.part import StepScale
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.train.verify import MODEL, batch
from ranks import run_ranks

Inputs, Weights = list[Tensor], list[nn.Parameter]


class Counting(RowKernels):
    """Row kernels that count their backward passes."""

    def __init__(self) -> None:
        self.calls = 0

    def swiglu_backward(self, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One expert."""
        self.calls += 1
        return super().swiglu_backward(*args)

    def rms_norm_backward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        """One norm."""
        self.calls += 1
        return super().rms_norm_backward(*args)


class Products(TorchDispatchMode):
    """Counts multiplications in matrix products. Torch's own counter refuses to look into passes for inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operator, backward ones included."""
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.numbers += args[0].numel() * args[1].shape[-1]
        assert func.overloadpacket not in (torch.ops.aten.addmm, torch.ops.aten.baddbmm)
        return func(*args, **(kwargs or {}))


def experts(kernels: RowKernels) -> tuple[Inputs, Weights, Callable[[], Tensor]]:
    layer = Experts(16, 24, 5)
    layer.kernels = kernels
    x_TD, weights_TK = torch.randn(40, 16, requires_grad=True), torch.rand(40, 2, requires_grad=True)
    chosen_TK = torch.randint(0, 3, (40, 1)) + torch.tensor([0, 1])  # none of them the last
    return (
        [x_TD, weights_TK],
        [layer.w_in, layer.w_out],
        lambda: layer(x_TD, Routing(chosen_TK, weights_TK, None)),
    )


def norm(kernels: RowKernels) -> tuple[Inputs, Weights, Callable[[], Tensor]]:
    layer = RMSNorm(16, 1e-6)
    layer.kernels = kernels
    x_TD = torch.randn(40, 16, requires_grad=True)
    return [x_TD], [layer.weight], lambda: layer(x_TD, torch.float32)


def loss(kernels: RowKernels) -> tuple[Inputs, Weights, Callable[[], Tensor]]:
    hidden_TD, head_VD = torch.randn(40, 16, requires_grad=True), nn.Parameter(torch.empty(30, 16))
    labels_T = torch.randint(0, 30, (40,))
    return [hidden_TD], [head_VD], lambda: next_token_loss(hidden_TD, head_VD, labels_T, kernels)


LAYERS = {"experts": experts, "norm": norm, "loss": loss}


@pytest.mark.parametrize("name", LAYERS)
def test_two_passes_give_the_bits_of_one_and_repeat_nothing(name: str) -> None:
    torch.manual_seed(3)
    kernels = Counting()
    inputs, weights, forward = LAYERS[name](kernels)
    for weight in weights:
        nn.init.normal_(weight)
    out = forward()
    pull = torch.randn(out.shape)
    with Products() as products:
        together = torch.autograd.grad(out, (*inputs, *weights), pull)
    once, kernels.calls = (products.numbers, kernels.calls), 0

    node = forward().grad_fn
    assert node is not None
    edge = GradientEdge(node, 0)
    with Products() as products:
        first = torch.autograd.grad(edge, inputs, pull, retain_graph=True)
        second = torch.autograd.grad(edge, weights, pull, retain_graph=True)
    assert (products.numbers, kernels.calls) == once
    assert all(torch.equal(a, b) for a, b in zip(together, (*first, *second), strict=True))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_second_pass_from_another_gradient_uses_nothing_of_the_first(name: str, in_place: bool) -> None:
    torch.manual_seed(3)
    inputs, weights, forward = LAYERS[name](RowKernels())
    for weight in weights:
        nn.init.normal_(weight)
    out = forward()
    pull, other = torch.randn(out.shape), torch.randn(out.shape)
    expected = torch.autograd.grad(out, weights, other, retain_graph=True)
    torch.autograd.grad(out, inputs, pull, retain_graph=True)
    other = pull.copy_(other) if in_place else other
    found = torch.autograd.grad(out, weights, other)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_an_ordinary_pass_keeps_nothing_and_a_frozen_weight_costs_nothing(name: str) -> None:
    inputs, weights, forward = LAYERS[name](RowKernels())
    for weight in weights:
        nn.init.normal_(weight)
    out = forward()
    out.sum().backward(retain_graph=True)
    assert not hasattr(out.grad_fn, "kept")
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
    out = forward()
    out.sum().backward(retain_graph=True)
    assert not hasattr(out.grad_fn, "kept")
    assert all(x.grad is not None for x in inputs)
    assert all(w.grad is None for w in weights)


def cost(rank: int, schedule: str) -> tuple[int, int]:
    """Multiplications and backward passes of row kernels in one step of eight micro-batches."""
    kernels = Counting()
    layout = Layout.model_validate({"pp": 2, "schedule": schedule, "chunks": 2 if schedule == "interleaved" else 1})
    engine = Engine(MODEL, layout, World(rank, 2, torch.device("cpu")), kernels)
    engine.initialise(1)
    data = batch(1, MODEL.vocab_size, 8, 32)
    with Products() as products:
        engine.accumulate(data, 1, StepScale(200, 8, torch.zeros(4, 8)))
    return products.numbers, kernels.calls


def test_a_step_of_zero_bubble_computes_what_a_step_of_1f1b_computes() -> None:
    plain, split = (run_ranks(cost, 2, schedule) for schedule in ("1f1b", "zero_bubble"))
    assert sum(calls for _, calls in plain) > 100
    assert [sum(kind) for kind in zip(*plain, strict=True)] == [sum(kind) for kind in zip(*split, strict=True)]
