"""Random questions to the planner: shapes of every family, jobs, stacks, devices, and layouts that can run."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from moesaic.plan.device import Device, devices
from moesaic.plan.job import Job
from moesaic.plan.layouts import Layouts, join, valid
from moesaic.plan.shape import LatentAttention, Shape
from moesaic.plan.stack import Stack, stacks


@dataclass(frozen=True)
class Case:
    """One question with several layouts."""

    shape: Shape
    job: Job
    layouts: Layouts
    device: Device
    stack: Stack


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Dense, sparse and mixed; multi-head, grouped, multi-query and latent attention; windows, biases, norms."""
    n_layers = draw(st.integers(1, 40))
    heads = draw(st.sampled_from([1, 2, 4, 8, 12, 16, 64]))
    head_dim = draw(st.sampled_from([32, 64, 128]))
    d = heads * draw(st.sampled_from([32, 64, 128]))
    shape = Shape(
        name="drawn",
        n_layers=n_layers,
        d_model=d,
        n_heads=heads,
        n_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4, 8, 12, 16, 64) if heads % n == 0])),
        head_dim=head_dim,
        d_ff=draw(st.sampled_from([1, 2, 4, 16])) * d,
        vocab_size=draw(st.sampled_from([1024, 32_000, 50_257])),
        ffn_matrices=draw(st.sampled_from([2, 3])),
        tied=draw(st.booleans()),
        positions=draw(st.sampled_from([0, 2048])),
        biases=draw(st.booleans()),
        ffn_biases=draw(st.booleans()),
        norms=draw(st.sampled_from([1, 2, 4])),
        norm_values=draw(st.sampled_from([0, 1, 2])),
        parallel_block=draw(st.booleans()),
        qk_norm=draw(st.sampled_from([0, 2 * head_dim])),
        attention_extra=draw(st.sampled_from([0, 0, 1000, d * d])),
        extra=draw(st.sampled_from([0, 2 * d])),
    )
    if draw(st.booleans()):
        shape = replace(shape, window=draw(st.integers(1, 700)), windowed_layers=draw(st.integers(0, n_layers)))
    if draw(st.integers(0, 2)) == 0:
        q_rank = draw(st.sampled_from([None, 64, 192]))
        shape = replace(shape, biases=False, qk_norm=0, latent=LatentAttention(q_rank, 64, 16, 32, 48))
    if draw(st.integers(0, 2)):
        experts = draw(st.sampled_from([2, 8, 16, 60]))
        shared = draw(st.sampled_from([0, 0, 1, 2]))
        width = draw(st.sampled_from([1, 8])) * d // 4
        where = draw(st.sampled_from(["none", "first", "scattered"]))
        dense = draw(st.integers(0, n_layers - 1)) if where != "none" else 0
        at = tuple(sorted(draw(st.permutations(range(n_layers)))[:dense])) if where == "scattered" else ()
        shape = replace(
            shape,
            n_experts=experts,
            top_k=draw(st.integers(1, experts)),
            d_expert=width,
            n_shared=shared,
            d_shared=shared * width,
            dense_layers=dense,
            dense_at=at,
            router_extra=draw(st.sampled_from([0, experts])),
        )
    return shape


@st.composite
def layout_rows(draw: st.DrawFn) -> Layouts:
    """One layout, which often cannot run."""
    degree = st.sampled_from([1, 1, 2, 3, 4, 8, 16])
    tp = draw(degree)
    return Layouts.of(
        tp=tp,
        pp=draw(st.sampled_from([1, 1, 2, 3, 4, 5, 8, 13])),
        cp=draw(st.sampled_from([1, 1, 2, 4])),
        dp=draw(degree),
        ep=draw(st.sampled_from([1, 1, 2, 4, 8, 16])),
        etp=draw(st.sampled_from([1, 1, tp, tp, 2])),
        micro_batch=draw(st.sampled_from([1, 1, 2, 3])),
        chunks=draw(st.sampled_from([1, 1, 1, 2, 3, 4])),
        zero=draw(st.integers(0, 3)),
        recompute=draw(st.integers(0, 2)),
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Short sequences, so that positions can be summed one by one."""
    return Job(
        seq_len=draw(st.sampled_from([1, 7, 128, 500, 1024])),
        batch=draw(st.integers(1, 200)),
        precision=draw(st.sampled_from(["bf16", "fp16", "fp8"])),
        gradient_bytes=draw(st.sampled_from([2, 4])),
        optimizer_bytes=draw(st.sampled_from([4, 12])),
        imbalance=draw(st.sampled_from([1.0, 1.25])),
        zero_bubble=draw(st.booleans()),
    )


@st.composite
def stack_profiles(draw: st.DrawFn) -> Stack:
    """Shipped constants with every switch in both positions."""
    own = draw(st.sampled_from(list(stacks().values())))
    switches = {name: draw(st.booleans()) for name in ("flash", "sequence_parallel", "dropout", "rails")}
    return replace(own, **switches, low_precision=0.9, layer_us=draw(st.sampled_from([0.0, 600.0])))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layouts that `valid` accepts, up to four of twelve drawn."""
    shape, job = draw(shapes()), draw(jobs())
    if draw(st.booleans()):  # as many heads as the widest tensor group, or rarely would one be drawn
        shape = replace(shape, n_heads=16, d_model=16 * 64, n_kv_heads=draw(st.sampled_from([1, 2, 4, 8, 16])))
    device = draw(st.sampled_from(list(devices().values())))
    if job.precision not in device.tflops:
        job = replace(job, precision="fp16")
    layouts = join([draw(layout_rows()) for _ in range(12)])
    ok = valid(shape, layouts, job.batch)
    assume(ok.any())
    return Case(shape, job, layouts[np.flatnonzero(ok)[:4]], device, draw(stack_profiles()))


@st.composite
def staged(draw: st.DrawFn) -> Case:
    """Sparse models whose first layers are dense, on pipelines: stages of many kinds, any of which may be the worst."""
    n_layers, pp = draw(st.integers(6, 60)), draw(st.integers(2, 12))
    width = draw(st.sampled_from([64, 256, 1024, 4096]))
    shape = Shape(
        "staged", n_layers, 256, 4, 4, 64, draw(st.sampled_from([256, 1024, 16_384])), 1024,
        n_experts=8, top_k=draw(st.integers(1, 8)), d_expert=width, dense_layers=draw(st.integers(1, n_layers - 1)),
    )  # fmt: skip
    layouts = Layouts.of(
        pp=min(pp, n_layers),
        ep=draw(st.sampled_from([1, 8])),
        dp=8,
        zero=draw(st.integers(0, 3)),
        recompute=draw(st.integers(0, 2)),
    )
    job = Job(draw(st.sampled_from([16, 256, 2048])), 8 * draw(st.integers(1, 20)), zero_bubble=draw(st.booleans()))
    using = replace(stacks()["megatron-core"], sparse_us=0.0, layer_us=0.0, sync_us=0.0)
    return Case(shape, job, layouts, devices()["h100"], using)


def dominated(points: np.ndarray) -> set[int]:
    """Rows that another beats in one column and equals or beats in all."""
    return {i for i, p in enumerate(points) if any((q <= p).all() and (q < p).any() for q in points)}
