"""Memory of the heaviest stage: published figures, and what must hold for every layout."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import Case, cases, shapes

from moesaic.plan.job import Job
from moesaic.plan.layouts import FULL, NONE, SELECTIVE, Layouts
from moesaic.plan.memory import Memory, layer_activations, memory, memory_total
from moesaic.plan.placement import in_flight, stage
from moesaic.plan.rank import on_rank
from moesaic.plan.reference import Reference
from moesaic.plan.schedule import in_flight as simulated
from moesaic.plan.schedule import orders
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape
from moesaic.plan.stack import stack
from moesaic.plan.stages import stage_loads

GIB = 2**30
# Korthikanti et al. 2022 (arXiv:2205.05198), table 3: name -> layers, width, heads, pp, interleave, micro-batch
MODELS = {
    "22b": (48, 6144, 64, 1, 1, 4),
    "175b": (96, 12288, 96, 8, 3, 1),
    "530b": (105, 20480, 128, 35, 3, 1),
    "1t": (128, 25600, 160, 64, 1, 1),
}


@pytest.mark.parametrize(
    ("name", "mode", "sequence_parallel", "gib"),
    [
        ("22b", NONE, False, 59.25),
        ("22b", SELECTIVE, True, 9.5625),
        ("175b", NONE, False, 66.84375),
        ("175b", SELECTIVE, True, 12.3515625),
        ("530b", NONE, False, 114.0234375),
        ("530b", SELECTIVE, True, 23.076171875),
        ("1t", NONE, False, 131.25),
    ],
)
def test_activations_of_korthikanti(name: str, mode: int, sequence_parallel: bool, gib: float) -> None:
    """Eqs. 2, 4 and 6 with eq. 8's factor for interleaving, per device of the first stage: figure 1's bars."""
    layers, d, heads, pp, chunks, micro_batch = MODELS[name]
    shape = Shape(name, layers, d, heads, heads, d // heads, 4 * d, 51_200, ffn_matrices=2)
    layout = Layouts.of(tp=8, pp=pp, chunks=chunks, micro_batch=micro_batch, recompute=mode)
    using = replace(stack("megatron-2021"), sequence_parallel=sequence_parallel)
    found = memory(shape, Job(2048, micro_batch * pp * 8), layout, using)
    assert found.activations[0] / GIB == pytest.approx(gib, rel=1e-12)


@pytest.fixture
def described() -> Shape:
    return read_shape("gpt4")


def described_memory(shape: Shape, ep: int, gradient_bytes: int, mode: int = FULL) -> Memory:
    layout = Layouts.of(tp=8, pp=15, dp=208, ep=ep, recompute=mode)
    return memory(shape, Job(8192, 7280, gradient_bytes=gradient_bytes), layout, stack("megatron-core"))


def test_the_described_system_on_80_gb(described: Shape) -> None:
    assert 30.5e9 < described_memory(described, 1, 2).weights[0] < 30.9e9
    fits = {(ep, g): bool(described_memory(described, ep, g).total[0] < 80e9) for ep in (1, 16) for g in (2, 4)}
    assert fits == {(1, 2): True, (1, 4): False, (16, 2): True, (16, 4): True}


def test_full_recomputation_keeps_the_inputs_of_15_micro_batches(described: Shape) -> None:
    layout = Layouts.of(tp=8, pp=15, dp=208, ep=16, recompute=FULL)
    _, kept, _, working = layer_activations(described, Job(8192, 7280), layout, stack("megatron-core"))
    assert 8 * 15 * kept[0] == pytest.approx(2.6e9, rel=0.02)
    assert described_memory(described, 16, 4).activations[0] == pytest.approx(120 * kept[0] + working[0], rel=1e-12)


@settings(max_examples=100)
@given(cases())
def test_sharding_more_states_never_needs_more(case: Case) -> None:
    found = [
        memory(case.shape, case.job, replace(case.layouts, zero=0 * case.layouts.zero + stage), case.stack)
        for stage in range(4)
    ]
    for less, more in pairwise(found[:3]):
        assert (more.total <= less.total * (1 + 1e-12)).all()
    # ZeRO-3 may: of a stage with one layer it holds all of it and a shard.
    assert (found[3].total - 1.03 * found[3].gathered <= found[2].total * (1 + 1e-12)).all()
    alone = (case.layouts.dp * case.layouts.cp == 1) & (case.layouts.edp == 1)
    assert np.allclose(found[3].total[alone], found[0].total[alone], rtol=1e-12)


@settings(max_examples=100)
@given(cases())
def test_recomputing_never_keeps_more(case: Case) -> None:
    none, selective, full = (
        memory_total(case.shape, case.job, replace(case.layouts, recompute=0 * case.layouts.tp + mode), case.stack)
        for mode in (NONE, SELECTIVE, FULL)
    )
    assert (selective <= none * (1 + 1e-12)).all()
    if not case.shape.dense_at:  # a layer that is a share of two kinds is recomputed as the larger
        assert (full <= none * (1 + 1e-12)).all()


@settings(max_examples=100)
@given(cases())
def test_memory_is_finite_and_positive(case: Case) -> None:
    found = memory(case.shape, case.job, case.layouts, case.stack)
    for part in ("weights", "gradients", "optimizer", "activations", "reserve"):
        values = getattr(found, part)
        assert np.isfinite(values).all()
        assert (values > 0).all()
    assert (found.logits >= 0).all()
    assert (found.gathered >= 0).all()


@settings(max_examples=100)
@given(cases())
def test_many_layouts_at_once_are_the_same_as_one_by_one(case: Case) -> None:
    found = memory(case.shape, case.job, case.layouts, case.stack)
    for i in range(len(case.layouts)):
        one = memory(case.shape, case.job, case.layouts[i : i + 1], case.stack)
        assert all(getattr(one, n)[0] == getattr(found, n)[i] for n in Memory.__dataclass_fields__)


@settings(max_examples=300)
@given(shapes(), st.sampled_from([1, 2, 4, 8]), st.integers(1, 8), st.booleans())
def test_ranks_together_hold_the_model(shape: Shape, tp: int, pp: int, fold: bool) -> None:
    """Every parameter once; replicated ones on each tensor rank, and a tied head once more on the last stage."""
    pp = min(pp, shape.n_layers)
    if shape.n_heads % tp or (shape.latent is None and shape.n_kv_heads % tp and tp % shape.n_kv_heads):
        tp = 1
    ep = 2 if fold and tp % 2 == 0 else 1
    L = Layouts.of(tp=tp, pp=pp, ep=ep, etp=1 if fold else tp, dp=8).floats
    parts = on_rank(shape, L)
    held = 0.0
    for index in range(pp):
        place = stage(shape, L, np.array([index]))
        plain = place.dense * parts.dense_layer + place.sparse * parts.sparse_layer + parts.outside(place, L)
        held += float(tp * plain[0] + ep * L.etp[0] * place.sparse[0] * parts.experts[0])
    d, again = shape.d_model, tp - 1
    layer = shape.norm_parameters + shape.attention_extra + (0 if shape.latent else shape.qk_norm)
    if a := shape.latent:
        layer += d * (a.kv_rank + a.rope_dim + (a.q_rank or 0)) + a.kv_rank + (a.q_rank or 0)
    else:
        copies = max(tp // shape.n_kv_heads - 1, 0) / again if again else 0
        layer += copies * 2 * shape.n_kv_heads * shape.head_dim * (d + (1 if shape.biases else 0))
        layer += d if shape.biases else 0
    bias = d if shape.biases or shape.ffn_biases else 0
    dense_layers, sparse_layers = shape.n_layers - shape.sparse_layers, shape.sparse_layers
    wanted = shape.total_parameters + again * (layer * shape.n_layers + bias * dense_layers)
    wanted += again * sparse_layers * (shape.router_parameters + (bias if shape.n_shared else 0))
    wanted += (L.etp[0] - 1) * sparse_layers * shape.n_experts * bias
    wanted += again * (shape.positions * d + d * shape.norm_values + shape.extra)
    wanted += shape.vocab_size * d if shape.tied and pp > 1 else 0
    assert held == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("p", "m", "v"), [(4, 8, 1), (4, 3, 1), (4, 8, 2), (4, 4, 2), (3, 9, 4), (6, 12, 3), (8, 8, 5)]
)
def test_micro_batches_in_flight_are_those_of_the_schedule(p: int, m: int, v: int) -> None:
    for bubble_free, kind in ((False, "1f1b" if v == 1 else "interleaved"), (True, "zero_bubble")):
        if m < p:
            wanted = [min(m, p - i) for i in range(p)] if not bubble_free else [m] * p
        else:
            wanted = [n / v for n in simulated(orders(kind, p, m, v))]  # type: ignore[arg-type]
        L = Layouts.of(pp=p, chunks=v).floats
        found = [float(in_flight(L, np.array([m]), np.array([i]), bubble_free)[0]) for i in range(p)]
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_single_stage_counts_its_dense_layers() -> None:
    shape = read_shape("deepseek-v3")
    found = memory(shape, Job(4096, 64), Layouts.of(dp=64, ep=64), stack("megatron-core"))
    experts = shape.sparse_layers * shape.n_experts * shape.block_parameters(shape.d_expert)
    assert found.weights[0] == pytest.approx(2 * (shape.total_parameters - experts * 63 / 64), rel=1e-12)


def test_the_last_stage_is_the_heaviest_with_few_micro_batches() -> None:
    """One micro-batch is in flight on every stage; the last has the logits too."""
    shape = read_shape("llama-3-8b")
    row = Layouts.of(pp=4, zero=0).row(0)
    one = Reference(shape, Job(8192, 1), row, stack=stack("megatron-core"), device=None)  # type: ignore[arg-type]
    stages = [sum(one.stage_memory(i).values()) for i in range(4)]
    assert stages.index(max(stages)) == 3
    assert memory(shape, Job(8192, 1), Layouts.of(pp=4, zero=0), stack("megatron-core")).total[0] == max(stages)


@pytest.mark.parametrize(("layers", "pp"), [(7, 1), (7, 2), (9, 8), (15, 8), (126, 16), (61, 16)])
def test_stages_are_those_of_plan_params(layers: int, pp: int) -> None:
    shape = replace(read_shape("llama-3-405b"), n_layers=layers)
    L = Layouts.of(pp=pp).floats
    counts = [float(stage(shape, L, np.array([i])).dense[0]) for i in range(pp)]
    assert counts == [load.layers for load in stage_loads(shape, pp)]


def test_layers_of_stages() -> None:
    """126 layers on 16 x 8 chunks: the first and the last stage have one less (Llama 3, sec. 3.3.2)."""
    shape, L = read_shape("llama-3-405b"), Layouts.of(pp=16, chunks=8).floats
    counts = [float((stage(shape, L, np.array([i])).dense)[0]) for i in range(16)]
    assert counts == [7, *[8] * 14, 7]
