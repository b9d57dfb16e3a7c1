"""Each collective's backward is its adjoint: <A x, y> = <x, A^T y>, both sides summed over ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.data.batch import IGNORE
from moesaic.model import next_token_loss
from moesaic.model.attend import Visibility, attend
from moesaic.model.kernels import RowKernels
from moesaic.parallel.collectives import (
    ROWS,
    SEQUENCE,
    exchange_counts,
    exchange_rows,
    gather,
    max_,
    scatter_sum,
    sum_,
)
from moesaic.parallel.context import GatheredAttention
from moesaic.parallel.cut import Pieces, SequenceCut
from moesaic.parallel.private import box_of, local, unflatten
from moesaic.parallel.vocabulary import embed_shared, vocabulary_loss
from moesaic.train.verify import batch
from ranks import run_ranks


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everywhere(x: Tensor) -> float:
    return float(sum_(x.detach().clone(), dist.group.WORLD))


def adjoint(rank: int, what: str, dim: int, sequences: int) -> tuple[float, float]:
    group = dist.group.WORLD
    assert group is not None
    x = draw(rank, sequences, 6, 5).requires_grad_()
    if what == "gather":
        y = gather(x, dim, group)
    elif what == "scatter":
        y = scatter_sum(x, dim, group)
    else:  # rank 0 sends 0 and all its rows, rank 1 sends 2 and 1: uneven, and nothing at all
        x = draw(rank, (4, 3)[rank], 5).requires_grad_()
        leaving = [[0, 4], [2, 1]][rank]
        arriving = [[0, 2], [4, 1]][rank]
        y = exchange_rows(x, arriving, leaving, group)
    other = draw(100 + rank, *y.shape)
    (back,) = torch.autograd.grad(y, x, other)
    return everywhere((y * other).sum()), everywhere((x * back).sum())


@pytest.mark.parametrize(
    ("what", "dim", "sequences"),
    [("gather", SEQUENCE, 1), ("gather", SEQUENCE, 3), ("gather", ROWS, 4), ("scatter", SEQUENCE, 1),
     ("scatter", SEQUENCE, 3), ("scatter", ROWS, 4), ("exchange", ROWS, 0)],
)  # fmt: skip
def test_backward_is_the_adjoint(what: str, dim: int, sequences: int) -> None:
    for forward, backward in run_ranks(adjoint, 2, what, dim, sequences):
        assert abs(forward) > 1e-3
        assert forward == pytest.approx(backward, rel=1e-12)


def moved(rank: int) -> dict[str, Tensor]:
    group = dist.group.WORLD
    assert group is not None
    x = torch.arange(8.0).view(1, 4, 2) + 100 * rank
    return {
        "gathered": gather(x, SEQUENCE, group),
        "scattered": scatter_sum(x, SEQUENCE, group),
        "counts": exchange_counts(torch.tensor([1, 2, 3, 4]) + 10 * rank, group),
        "max": max_(torch.tensor([float(rank), -float(rank)]), group),
    }


def test_pieces_go_where_they_belong() -> None:
    x = torch.arange(8.0).view(1, 4, 2)
    first, second = run_ranks(moved, 2)
    assert torch.equal(first["gathered"], torch.cat((x, x + 100), dim=1))
    assert torch.equal(first["scattered"], (2 * x + 100)[:, :2])
    assert torch.equal(second["scattered"], (2 * x + 100)[:, 2:])
    assert first["counts"].tolist() == [1, 2, 11, 12]
    assert second["counts"].tolist() == [3, 4, 13, 14]
    assert first["max"].tolist() == [1.0, 0.0]


def test_one_rank_needs_no_group() -> None:
    x = draw(0, 2, 4, 3)
    assert gather(x, SEQUENCE, None) is x
    assert scatter_sum(x, SEQUENCE, None) is x
    assert sum_(x, None) is x


def of_vocabulary(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    group = dist.group.WORLD
    assert group is not None
    hidden, head, labels, tokens = vocabulary_case()
    own = slice(rank * 16, (rank + 1) * 16)
    hidden, piece = hidden.requires_grad_(), head[own].clone().requires_grad_()
    loss = vocabulary_loss(hidden, piece, labels, group)
    (3 * loss).backward()
    assert hidden.grad is not None
    assert piece.grad is not None
    embedded = sum_(embed_shared(tokens, head[own], group), group)
    return loss.detach(), sum_(hidden.grad, group), piece.grad, embedded


def vocabulary_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(700, 8, generator=generator), 3 * torch.randn(32, 8, generator=generator)
    labels, tokens = (torch.randint(32, shape, generator=generator) for shape in ((700,), (2, 9)))
    labels[::5] = IGNORE
    return hidden, head, labels, tokens


def test_loss_and_embedding_over_a_shared_vocabulary_are_those_of_a_whole_one() -> None:
    hidden, head, labels, tokens = vocabulary_case()
    hidden, head = hidden.requires_grad_(), head.requires_grad_()
    loss = next_token_loss(hidden, head, labels, RowKernels())
    (3 * loss).backward()
    results = run_ranks(of_vocabulary, 2)
    for got, d_hidden, _, embedded in results:
        torch.testing.assert_close(got, loss.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(d_hidden, hidden.grad, rtol=1e-5, atol=1e-5)
        assert torch.equal(embedded, head.detach()[tokens])
    torch.testing.assert_close(torch.cat([r[2] for r in results]), head.grad, rtol=1e-5, atol=1e-4)


def attention_case() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 16, 4, 8), (2, 16, 1, 8), (2, 16, 1, 8), (2, 16, 4, 8))
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


def in_context(rank: int, window: int | None) -> tuple[Tensor, ...]:
    group = dist.group.WORLD
    cut = SequenceCut(cp_size=2, cp_rank=rank, cp=group, sequence=group)
    data = batch(1, 64, 2, 16)
    sight = cut.sight(Visibility.of(data.positions, data.documents, window), 16)
    assert isinstance(sight, Pieces)
    q, k, v, pull = (cut.context(x) for x in attention_case())
    inputs = tuple(x.clone().requires_grad_() for x in (q, k, v))
    out = GatheredAttention(cut)(*inputs, sight, RowKernels())
    return out.detach(), *torch.autograd.grad(out, inputs, pull)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_over_gathered_keys_is_attention(window: int | None) -> None:
    data = batch(1, 64, 2, 16)
    *raw, pull = attention_case()
    inputs = tuple(x.requires_grad_() for x in raw)
    out = attend(*inputs, Visibility.of(data.positions, data.documents, window), RowKernels())
    whole = (out.detach(), *torch.autograd.grad(out, inputs, pull))
    for rank, got in enumerate(run_ranks(in_context, 2, window)):
        cut = SequenceCut(cp_size=2, cp_rank=rank)
        for mine, expected in zip(got, whole, strict=True):
            torch.testing.assert_close(mine, cut.context(expected), rtol=1e-5, atol=1e-5)


def views(rank: int) -> tuple[list[int], list[int], tuple[slice, ...], tuple[int, ...], bool]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    world = init_device_mesh("cpu", (4,), mesh_dim_names=("world",))
    mesh = unflatten(world, (2, 2), ("slow", "fast"))
    whole = torch.arange(30.0).view(5, 6)
    weight = distribute_tensor(whole, mesh, [Shard(0), Shard(1)])
    box = box_of(weight)
    same = bool(torch.equal(local(weight), whole[box]))
    fast = dist.get_process_group_ranks(mesh.get_group("fast"))
    return fast, dist.get_process_group_ranks(mesh.get_group("slow")), box, tuple(local(weight).shape), same


def test_private_names_of_torch_do_what_we_take_them_for() -> None:
    results = run_ranks(views, 4)
    assert [r[0] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r[1] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert results[3][2] == (slice(3, 5), slice(3, 6))  # 5 rows over 2: 3 and 2
    assert [r[3] for r in results] == [(3, 3), (3, 3), (2, 3), (2, 3)]
    assert all(r[4] for r in results)
    plain = torch.ones(2)
    assert local(plain) is plain
