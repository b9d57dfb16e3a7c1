"""The norm over weights on different meshes, of which some ranks hold copies."""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moesaic.parallel import gradients
from moesaic.parallel.engine import Engine
from moesaic.parallel.gradients import BUCKET_BYTES
from moesaic.parallel.private import local
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.recipe.layout_text import parse_layout
from moesaic.train.verify import MODEL
from ranks import run_ranks

CONFIG = MODEL.model_copy(update={"n_layers": 4})
LAYOUTS = (
    "dp=4,zero=0", "dp=4", "tp=4", "pp=4", "dp=2,ep=2,tp=2,zero=0", "dp=2,ep=2,tp=2", "pp=2,tp=2,etp=2",
    "cp=2,pp=2,ep=2,zero=0", "pp=2,dp=2,schedule=zero_bubble",
)  # fmt: skip


def norms(rank: int, texts: tuple[str, ...]) -> list[tuple[float, float]]:
    """With a gradient of one everywhere, and after it was halved."""
    out = []
    for text in texts:
        engine = Engine(CONFIG, parse_layout(text), World(rank, 4, torch.device("cpu")))
        for weight in engine.gradients.weights():
            weight.parameter.grad = torch.ones_like(weight.parameter)
            local(weight.parameter.grad).fill_(1.0)
        before = engine.gradients.norm()
        engine.gradients.scale(0.5)
        out.append((before, engine.gradients.norm()))
    return out


def in_buckets(rank: int) -> tuple[list[Tensor], int]:
    """Sums of tensors below, at and above a bucket's size, and how many were copied on the way."""
    each = BUCKET_BYTES // 4
    tensors = [torch.full((n,), 1.0 + rank + i) for i, n in enumerate((3, each, 5, each + 7))]
    tensors.append(torch.full((2, each), 9.0 + rank).t())  # not contiguous
    copied = 0
    together = gradients._sum_together

    def counted(bucket: list[Tensor], group: ProcessGroup, dtype: torch.dtype) -> None:
        nonlocal copied
        copied += len(bucket)
        together(bucket, group, dtype)

    gradients._sum_together = counted
    gradients._sum(tensors, torch.distributed.group.WORLD)
    assert all((t == t.flatten()[0]).all() for t in tensors)
    return [t.flatten()[:1].clone() for t in tensors], copied


def test_large_gradients_are_summed_where_they_are_and_small_ones_together() -> None:
    for sums, copied in run_ranks(in_buckets, 2):
        assert [float(s) for s in sums] == [3.0, 5.0, 7.0, 9.0, 19.0]
        assert copied == 3


def test_each_weight_counts_once() -> None:
    whole = math.sqrt(CONFIG.parameters())
    for results in run_ranks(norms, 4, LAYOUTS):
        for text, (norm, halved) in zip(LAYOUTS, results, strict=True):
            assert math.isclose(norm, whole, rel_tol=1e-7), text
            assert math.isclose(halved, whole / 2, rel_tol=1e-7), text


def test_a_weight_that_nothing_reached_has_a_gradient_of_zero() -> None:
    engine = Engine(CONFIG, Layout(), World())
    assert engine.gradients.norm() == 0
