"""Orders, refusals and times of pipelines are those of PyTorch's own schedules."""

import contextlib
import io
from unittest import mock

import pytest

from moesaic.plan.schedule import Kind, Op, orders, schedulable, simulate

TORCH: dict[Kind, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero_bubble": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
}


def torch_orders(kind: Kind, p: int, m: int, v: int | None) -> list[list[Op]]:
    """PyTorch's table without its waits and without reductions of gradients."""
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    table = get_schedule_ops(TORCH[kind], p, m, v)
    names = ("F", "B", "I", "W")
    return [
        [
            Op(a.computation_type.value, a.stage_index, a.microbatch_index)
            for a in rank
            if a is not None and a.computation_type.value in names and a.microbatch_index is not None
        ]
        for rank in table
    ]


@pytest.mark.parametrize("kind", ["gpipe", "interleaved", "zero_bubble", "zbv"])
@pytest.mark.parametrize("p", [2, 3, 4, 15])
def test_orders_are_those_of_torch(kind: Kind, p: int) -> None:
    compared = 0
    for v in {"gpipe": (1,), "zbv": (2,)}.get(kind, (2, 3, 8)):
        for m in (1, 2, p, p + 1, 2 * p - 1, 2 * p, 2 * p + 6, 4 * p):
            if kind in ("interleaved", "zero_bubble") and not schedulable(m, p, v):
                continue
            assert [list(r) for r in orders(kind, p, m, v).ranks] == torch_orders(kind, p, m, v), (v, m)
            compared += 1
    assert compared >= 5


def run_of_torch_1f1b(p: int, m: int, rank: int) -> list[Op]:
    """What `Schedule1F1B` calls on its stage. Its printed table differs: its last rank begins with micro-batch 1."""
    from torch.distributed.pipelining.schedules import Schedule1F1B
    from torch.distributed.pipelining.stage import PipelineStage

    calls: list[Op] = []
    stage = mock.create_autospec(PipelineStage, instance=True)
    stage.num_stages, stage.stage_index, stage.group_rank, stage.group_size = p, rank, rank, p
    stage.submod, stage.is_last, stage.has_backward = None, False, True
    for name in ("fwd_recv", "fwd_send", "bwd_recv", "bwd_send"):
        getattr(stage, f"get_{name}_ops").return_value = []
    stage.forward_one_chunk.side_effect = lambda i, *a, **k: calls.append(Op("F", rank, i))
    stage.backward_one_chunk.side_effect = lambda i, *a, **k: calls.append(Op("B", rank, i))
    schedule = Schedule1F1B(stage, m)
    with mock.patch.object(schedule, "_initialize_stage"), mock.patch.object(schedule, "_update_losses"):
        schedule._step_microbatches([()] * m, [{}] * m)
    return calls


@pytest.mark.parametrize(("p", "m"), [(2, 2), (2, 7), (4, 4), (4, 9), (15, 36)])
def test_1f1b_is_what_torch_runs(p: int, m: int) -> None:
    assert [list(r) for r in orders("1f1b", p, m).ranks] == [run_of_torch_1f1b(p, m, rank) for rank in range(p)]


@pytest.mark.parametrize("engine_kind", ["interleaved", "zero_bubble"])
def test_torch_refuses_what_is_called_unschedulable(engine_kind: Kind) -> None:
    for p, m in [(15, m) for m in range(28, 48)] + [(4, m) for m in range(1, 20)]:
        try:
            torch_orders(engine_kind, p, m, 2)
            taken = True
        except ValueError:
            taken = False
        assert taken == schedulable(m, p, 2), (p, m)


def test_torch_refuses_1f1b_with_fewer_micro_batches_than_ranks() -> None:
    with pytest.raises(ValueError, match="must be greater than"):
        run_of_torch_1f1b(4, 3, 0)
    assert not schedulable(3, 4)
    assert schedulable(4, 4)
    assert schedulable(3, 4, engine="megatron")


@pytest.mark.parametrize(("p", "m"), [(2, 4), (5, 12), (8, 16)])
@pytest.mark.parametrize(("kind", "v"), [("interleaved", 2), ("interleaved", 8), ("zero_bubble", 2), ("zbv", 2)])
def test_simulation_lasts_as_long_as_torchs_spaced_table(kind: Kind, v: int, p: int, m: int) -> None:
    """Only its longest row counts: the table moves operations to other rows once a rank has finished."""
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    with contextlib.redirect_stdout(io.StringIO()):
        table = get_schedule_ops(TORCH[kind], p, m, v, add_spacing=True)
    rows = [row[: max(i + 1 for i, a in enumerate(row) if a is not None)] for row in table]
    lengths = [sum(2 if a is not None and a.computation_type.value == "B" else 1 for a in row) for row in rows]
    assert simulate(orders(kind, p, m, v)).time == max(lengths)
