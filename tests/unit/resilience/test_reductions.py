"""Under FSDP2 a NaN that one rank brings is traced to it, though the sum that has it lies elsewhere."""

import math
from pathlib import Path

import pytest
import torch
import toy
from torch.distributed.fsdp import FSDPModule, fully_shard

import tiny
from moesaic.parallel.shard import reduce_in_bf16
from moesaic.resilience.incidents import incidents
from moesaic.resilience.localise import GradientWatch, first_not_finite
from ranks import run_ranks


def train(rank: int, run: str, watched: bool, bf16: bool = False) -> tuple[list[float], list[float]]:
    """Two steps; in the second rank 1 strikes column 0 of the output, whose row of weights rank 0 holds."""
    torch.manual_seed(0)
    net = toy.Net()
    for layer in net.layers:
        fully_shard(layer)
    fully_shard(net)
    if bf16:
        for module in (net, *net.layers):
            assert isinstance(module, FSDPModule)
            reduce_in_bf16(module)
    watch = GradientWatch(Path(run), rank)
    if watched:
        watch.stage_ready(tiny.stage(), [net], torch.optim.SGD(net.parameters()))
    sums = []
    for step in (1, 2):
        watch.step_begins(step)
        out = net(torch.full((2, 8), 1.0 + rank))
        if step == 2 and rank == 1:
            out.register_hook(_strike_first_column)
        out.square().sum().backward()
        watch.gradients_ready(step)
        grads = [p.grad.to_local() for p in net.parameters() if p.grad is not None]  # type: ignore[attr-defined]
        sums.append(float(sum(g.double().sum() for g in grads)))
        norm = math.nan if step == 2 else 1.0
        if watched:
            watch.step_ends({"step": step, "grad_norm": norm, "loss": 1.0, "seconds": 1.0})
        for p in net.parameters():
            p.grad = None
    return sums[:1], sums[1:]


def _strike_first_column(gradient: torch.Tensor) -> torch.Tensor:
    struck = gradient.clone()
    struck[0, 0] = math.nan
    return struck


def test_the_rank_that_brought_it_is_named(tmp_path: Path) -> None:
    run_ranks(train, 2, str(tmp_path), True)
    found = first_not_finite(tmp_path, 2)
    assert found is not None
    assert found.ranks == (1,)
    assert found.tensor == "layers.1.weight"
    holders = {i["rank"] for i in incidents(tmp_path) if "layers.1.weight" in i["tensors"]}
    assert 0 in holders  # whose own contribution was finite


@pytest.mark.parametrize("bf16", [False, True])
def test_watching_changes_no_bit(tmp_path: Path, bf16: bool) -> None:
    watched = run_ranks(train, 2, str(tmp_path), True, bf16)
    alone = run_ranks(train, 2, str(tmp_path), False, bf16)
    assert [first for first, _ in watched] == [first for first, _ in alone]
    assert first_not_finite(tmp_path, 2) is not None


def test_a_reduction_in_bf16_rounds(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    exact, rounded = (run_ranks(train, 2, str(tmp_path), False, bf16)[0][0] for bf16 in (False, True))
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=2**-6)
