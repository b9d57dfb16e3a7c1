"""Time of a step: what must hold for every layout, and figures that follow by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from plan_cases import Case, cases

from moesaic.plan.device import device
from moesaic.plan.job import Job
from moesaic.plan.layer import all_reduce, keys_seen
from moesaic.plan.layouts import FULL, NONE, SELECTIVE, Layouts
from moesaic.plan.schedule import interleaved_bubble
from moesaic.plan.shapes import read_shape
from moesaic.plan.stack import stack
from moesaic.plan.step import PARTS, StepTime, step_time

COMMUNICATION = ("tensor_parallel", "expert_parallel", "context_parallel", "pipeline", "bubble", "data_parallel")


def timed(case: Case, layouts: Layouts) -> StepTime:
    return step_time(case.shape, case.job, layouts, case.device, case.stack)


@settings(max_examples=100)
@given(cases())
def test_recomputing_more_never_takes_less_time(case: Case) -> None:
    none, selective, full = (
        timed(case, replace(case.layouts, recompute=0 * case.layouts.tp + mode)).total
        for mode in (NONE, SELECTIVE, FULL)
    )
    assert (none <= selective * (1 + 1e-12)).all()
    assert (selective <= full * (1 + 1e-12)).all()


@settings(max_examples=100)
@given(cases())
def test_more_replicas_with_as_many_more_sequences_compute_the_same(case: Case) -> None:
    more = replace(case.layouts, dp=3 * case.layouts.dp)
    job = replace(case.job, batch=3 * case.job.batch)
    once, thrice = timed(case, case.layouts), step_time(case.shape, job, more, case.device, case.stack)
    same = set(PARTS) - {"data_parallel", "optimizer", "pace", "pipeline"}
    for name in same:  # stages move apart, so sending between them may change
        assert np.allclose(getattr(once, name), getattr(thrice, name), rtol=1e-12, atol=0), name


@settings(max_examples=100)
@given(cases())
def test_one_device_talks_to_nobody(case: Case) -> None:
    found = timed(case, Layouts.of(zero=np.arange(4), recompute=NONE))
    for name in COMMUNICATION:
        assert (getattr(found, name) == 0).all()


@settings(max_examples=100)
@given(cases())
def test_time_is_finite_and_positive(case: Case) -> None:
    found = timed(case, case.layouts)
    for name in PARTS:
        assert np.isfinite(getattr(found, name)).all()
        assert (getattr(found, name) >= 0).all() or name == "pace"
    assert (found.gemm > 0).all()
    assert (found.total >= found.gemm).all()
    assert ((found.bubble_fraction >= 0) & (found.bubble_fraction < 1)).all()
    assert (found.micro_batches >= 1).all()


@settings(max_examples=100)
@given(cases())
def test_many_layouts_at_once_are_the_same_as_one_by_one(case: Case) -> None:
    found = timed(case, case.layouts)
    for i in range(len(case.layouts)):
        one = timed(case, case.layouts[i : i + 1])
        assert all(getattr(one, n)[0] == getattr(found, n)[i] for n in StepTime.__dataclass_fields__)


def test_the_bubble_of_the_described_system() -> None:
    """28.6 % at 35 micro-batches, and in seconds that share of the step's pipeline as the head is small."""
    shape, layouts = read_shape("gpt4"), Layouts.of(tp=8, pp=15, dp=208, chunks=np.array([1, 8]))
    found = step_time(shape, Job(8192, 7280), layouts, device("a100-80"), stack("megatron-core"))
    assert found.micro_batches.tolist() == [35, 30]
    assert found.bubble_fraction == pytest.approx(interleaved_bubble(15, [35, 30], [1, 8]), rel=1e-12)
    busy = found.total - found.bubble - found.pipeline - found.data_parallel - found.optimizer - found.pace
    assert found.bubble / (busy + found.bubble) == pytest.approx(found.bubble_fraction, rel=0.05)


def test_zero_bubble_leaves_a_third() -> None:
    shape, layouts, job = read_shape("gpt4"), Layouts.of(tp=8, pp=15, dp=208), Job(8192, 7280)
    plain, split = (
        step_time(shape, replace(job, zero_bubble=z), layouts, device("a100-80"), stack("megatron-core")).bubble[0]
        for z in (False, True)
    )
    assert split == pytest.approx(plain / 3, rel=1e-12)


def test_an_all_reduce_moves_twice_all_but_the_own_share() -> None:
    """8 ranks, 1 GB: 14 steps of 125 MB."""
    a100, using = device("a100-80"), replace(stack("megatron-core"), latency_us=0.0)
    seconds = all_reduce(a100, using, np.array([1e9]), np.array([8.0]))
    assert seconds[0] == pytest.approx(14 * 125e6 / (300e9 * using.domain), rel=1e-12)
    assert all_reduce(a100, using, np.array([1e9]), np.array([16.0]))[0] == pytest.approx(
        30 * 62.5e6 / (25e9 * using.network), rel=1e-12
    )


def test_keys_seen() -> None:
    plain = read_shape("llama-3-8b")
    assert keys_seen(plain, 8192) == 4096
    near = replace(plain, window=128, windowed_layers=plain.n_layers)
    assert keys_seen(near, 64) == 32
    assert keys_seen(near, 8192) == sum(min(i + 1, 128) - 0.5 for i in range(8192)) / 8192


def test_context_parallel_ranks_hide_their_ring_behind_long_sequences() -> None:
    shape, using = read_shape("llama-3-70b"), stack("megatron-core")
    layouts = Layouts.of(tp=8, cp=8)
    short, long = (
        step_time(shape, Job(n, 1), layouts, device("h100"), using).context_parallel[0] for n in (1024, 1_048_576)
    )
    assert short > 0
    assert long == 0


def test_tokens_for_experts_take_the_network_only_beyond_the_domain() -> None:
    """Tensor ranks of split experts push a part of their group out of the domain; context ranks lie outside it."""
    shape, using = read_shape("mixtral-8x7b"), replace(stack("megatron-core"), latency_us=0.0)

    def seconds(seq_len: int = 4096, **degree: int) -> float:
        found = step_time(shape, Job(seq_len, 64), Layouts.of(dp=32, **degree), device("h100"), using)
        return float(found.expert_parallel[0] / found.micro_batches[0])

    sent = 2 * 4096 * 2 * shape.d_model / 2 * using.exposed_ep  # top-2, bf16, tokens split over tp = 2
    fast, slow = (device("h100").domain_gb_s * 1e9 * using.domain, device("h100").network_gb_s * 1e9 * using.network)
    each = 4 * shape.n_layers * sent  # out and back, forward and backward
    assert seconds(ep=8, tp=2) == pytest.approx(each * 7 / 8 / fast, rel=1e-12)
    assert seconds(ep=8, tp=2, etp=2) == pytest.approx(each * (3 / 8 / fast + 4 / 8 / slow), rel=1e-12)
    assert seconds(8192, ep=4, tp=2, etp=2, cp=2) == pytest.approx(each * 3 / 4 / fast, rel=1e-12)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_replicas_exchange(zero: int) -> None:
    """Two nodes of one replica each: gradients and weights in rings of 2 over 8 network cards."""
    shape, using = read_shape("llama-3-8b"), replace(stack("megatron-core"), exposed_dp=1.0, exposed_zero3=1.0)
    layout = Layouts.of(tp=8, dp=2, zero=zero)
    found = step_time(shape, Job(8192, 8), layout, device("h100"), using).data_parallel[0]
    held = shape.d_model * (shape.head_parameters + shape.embedding_parameters) / shape.d_model / 8
    held += shape.n_layers * (shape.dense_layer_parameters - shape.norm_parameters) / 8
    held += (2 * shape.n_layers + 1) * shape.d_model
    bytes_each = {0: 4 + 4, 1: 4 + 2, 2: 4 + 2, 3: 4 * (2 + 2 + 4)}[zero]
    assert found == pytest.approx(
        held * bytes_each / 2 / (device("h100").network_gb_s * 1e9 * using.network), rel=1e-12
    )


def test_a_slow_first_stage_sets_the_pace() -> None:
    """Dense layers that are wider than the experts of a token: the stage that holds them is the slowest."""
    shape = replace(read_shape("mixtral-8x7b"), dense_layers=8, d_ff=8 * 14336)
    layout, job, using = Layouts.of(pp=4), Job(4096, 64), replace(stack("megatron-core"), sparse_us=0.0, sync_us=0.0)
    found = step_time(shape, job, layout, device("h100"), using)
    same = step_time(replace(shape, n_layers=8, n_experts=1), job, Layouts.of(), device("h100"), using)
    without_head = step_time(replace(shape, n_layers=16, n_experts=1), job, Layouts.of(), device("h100"), using)
    assert found.gemm[0] == pytest.approx(without_head.gemm[0] - same.gemm[0], rel=1e-9)
