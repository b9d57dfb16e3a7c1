"""Clusters of several generations: equal ones are the plain plan, batches and layers follow speed, memory holds."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from typer.testing import CliRunner

from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.job import Job
from moesaic.plan.layouts import Layouts
from moesaic.plan.memory import memory_total, stage_total
from moesaic.plan.mixed import Group, Mixed, Share, parse_cluster, replica_mixed
from moesaic.plan.mixed_pipeline import pipeline_mixed, simulated, splits, uneven_seconds
from moesaic.plan.mixed_sheet import mixed_sheet
from moesaic.plan.search import search
from moesaic.plan.search_api import read_workload
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape
from moesaic.plan.space import Space
from moesaic.plan.stack import stack
from moesaic.plan.step import step_time

STACK = stack("megatron-core")
A100, H100 = device("a100-80"), device("h100")
DENSE = Shape("dense", n_layers=12, d_model=2048, n_heads=16, n_kv_heads=4, head_dim=128, d_ff=8192, vocab_size=32_768)
SPARSE = replace(DENSE, name="sparse", n_kv_heads=1, n_experts=8, top_k=2, d_expert=4096)
FEW = Space(micro_batches=(1, 2), zero=(1,), recompute=(1, 2))


@pytest.mark.parametrize(
    ("shape", "job", "one", "two"),
    [(DENSE, Job(4096, 256), 16, 48), (SPARSE, Job(4096, 300), 32, 32), (SPARSE, Job(8192, 64), 16, 8)],
)
def test_replicas_of_equal_generations_are_the_plain_plan(shape: Shape, job: Job, one: int, two: int) -> None:
    plain = search(shape, job, A100, STACK, one + two, FEW).found.best("days", 1)
    mixed = replica_mixed(shape, job, [Group(A100, one), Group(A100, two)], STACK, FEW)
    assert mixed is not None
    assert mixed.tokens_per_s == pytest.approx(plain.tokens_per_s[0], rel=1e-9)
    assert mixed.used == plain.used[0]
    assert mixed.waiting == pytest.approx(0, abs=1e-9)
    assert len({s.micro_batches for s in mixed.shares}) == 1


def test_equal_halves_of_the_described_cluster() -> None:
    shape, job, _ = read_workload("gpt4", None, "60M")
    space = Space(micro_batches=(1,), zero=(1,), recompute=(1,))
    plain = search(shape, job, A100, STACK, 24_960, space).found.best("days", 1)
    mixed = replica_mixed(shape, job, [Group(A100, 12_480)] * 2, STACK, space)
    assert mixed is not None
    assert mixed.tokens_per_s == pytest.approx(plain.tokens_per_s[0], rel=1e-9)
    assert mixed.layouts.row(0) == plain.layouts.row(0)


@pytest.mark.parametrize("shape", [DENSE, SPARSE], ids=lambda s: s.name)
@pytest.mark.parametrize("chunks", [1, 3])
def test_pipeline_of_equal_generations_is_the_plain_step(shape: Shape, chunks: int) -> None:
    job = Job(4096, 128)
    layouts = Layouts.of(tp=2, pp=4, dp=4, ep=8 if shape is SPARSE else 1, etp=1, chunks=chunks)
    stages, layers = [np.array([1.0]), np.array([3.0])], [np.array([3.0]), np.array([3.0])]
    for profile in (STACK, stack("research")):
        seconds, _ = uneven_seconds(shape, job, [Group(A100, 8), Group(A100, 24)], profile, layouts, stages, layers)
        assert seconds[0] == pytest.approx(float(step_time(shape, job, layouts, A100, profile).total[0]), rel=1e-12)


def test_batch_is_shared_as_well_as_any_whole_micro_batches_allow() -> None:
    job = Job(4096, 101)
    groups = [Group(A100, 8), Group(H100, 16)]
    mixed = replica_mixed(DENSE, job, groups, STACK, FEW)
    assert mixed is not None
    micro = int(mixed.layouts.micro_batch[0])
    row = mixed.layouts.row(0)
    unit = int(row["pp"]) if row["chunks"] != 1 else 1
    a, b = (s.replicas for s in mixed.shares)

    def seconds(i: int, m: int) -> float:
        given = np.array([float(m)])
        return float(step_time(DENSE, job, mixed.layouts, groups[i].device, STACK, micro_batches=given).total[0])

    rates = []
    for m, n in product(range(unit, job.batch + 1, unit), repeat=2):
        if (m * a + n * b) * micro <= job.batch:
            rates.append((m * a + n * b) * micro * job.seq_len / max(seconds(0, m), seconds(1, n)))
    # Only the numbers next to the exact shares are tried, which may miss a little.
    assert mixed.tokens_per_s <= max(rates) * (1 + 1e-9)
    assert mixed.tokens_per_s > 0.97 * max(rates)
    assert mixed.shares[1].micro_batches > 2 * mixed.shares[0].micro_batches
    assert mixed.tokens <= job.batch_tokens


@pytest.mark.parametrize("name", ["gpt4", "gpt3", "llama-3-70b"])
def test_fullest_of_even_stages_is_what_memory_says(name: str) -> None:
    shape, job = read_shape(name), Job(4096, 960)
    for pp, chunks in ((1, 1), (2, 1), (4, 2), (8, 1), (7, 1)):
        layouts = Layouts.of(tp=8, pp=pp, dp=2, chunks=chunks, zero=1, recompute=1)
        few, more = divmod(shape.n_layers, pp)
        layers = [few + (pp - 1 - more <= i < pp - 1) for i in range(pp)]
        sizes = [
            float(stage_total(shape, job, layouts, STACK, np.array([float(n)]), np.array([float(i)]))[0])
            for i, n in enumerate(layers)
        ]
        assert max(sizes) == pytest.approx(float(memory_total(shape, job, layouts, STACK)[0]), rel=1e-12)


def test_layers_follow_speed_and_memory() -> None:
    job, groups = Job(4096, 512), [Group(A100, 16), Group(H100, 16)]
    shape = replace(DENSE, n_layers=48)
    mixed = pipeline_mixed(shape, job, groups, STACK, FEW)
    assert mixed is not None
    by = {s.group.device.name: s for s in mixed.shares}
    assert by["h100"].layers > by["a100-80"].layers
    total = sum(s.stages * s.layers for s in mixed.shares)
    assert shape.n_layers <= total < shape.n_layers + max(s.stages for s in mixed.shares)
    assert all(s.memory <= s.group.device.memory_gb * 1e9 for s in mixed.shares)
    assert all(s.used <= s.group.count for s in mixed.shares)
    assert 0 <= mixed.waiting < 0.5
    # With little memory the fast ones must take fewer layers, or the plan changes; it never overflows.
    tight = [Group(A100, 16), Group(replace(H100, memory_gb=12), 16)]
    squeezed = pipeline_mixed(shape, job, tight, STACK, FEW)
    assert squeezed is not None
    assert all(s.memory <= s.group.device.memory_gb * 1e9 for s in squeezed.shares)
    assert squeezed.tokens_per_s < mixed.tokens_per_s


def test_simulation_agrees_with_the_closed_form() -> None:
    one = Layouts.of(tp=2, pp=6, dp=2)
    shares = tuple(
        Share(Group(d, 8), 8, 2, s, n, 24, 24 * t, 1e9) for d, s, n, t in ((A100, 2, 2, 1.0), (H100, 4, 4, 0.8))
    )
    run = simulated(Mixed("pipeline", one, shares, 24 * 2 * 4096, 30.0))
    assert run is not None
    closed = 24 * 1.0 + 5 * (2 * 1.0 + 4 * 0.8) / 6  # m x slowest + (p - 1) x mean
    assert run.bound <= run.simulation.time <= closed * 1.02
    assert run.simulation.time == pytest.approx(closed, rel=0.05)
    assert run.price > 0


def test_splits_hold_all_layers() -> None:
    groups = [Group(A100, 200), Group(H100, 100)]
    rows = splits(read_shape("gpt4"), groups, "bf16")
    assert len(rows) > 100
    pp, v, s1, s2, l1, l2 = rows.T
    assert (s1 + s2 == pp).all()
    assert (abs(s1 - pp * 2 / 3) < 1).all()
    assert (s1 * l1 + s2 * l2 >= 120).all()
    assert (s1 * l1 + s2 * (l2 - 1) < 120).all()
    assert ((l1 % v == 0) & (l2 % v == 0)).all()


def test_hardware_is_read() -> None:
    assert parse_cluster("a100-80", "24000:25200:120").counts == tuple(range(24_000, 25_201, 120))
    assert parse_cluster("a100-80", "16k, 8192").counts == (8192, 16_000)
    assert parse_cluster("h100:1024", None).counts == (1024,)
    groups = parse_cluster("a100-80:16384,h100:8192", None).groups
    assert [(g.device.name, g.count) for g in groups] == [("a100-80", 16_384), ("h100", 8192)]
    for hardware, gpus, words in (
        ("a100-80", None, "give --gpus"),
        ("a100-80:8,h100", None, "its number"),
        ("a100-80:8,h100:8", "16", "leave --gpus out"),
        ("a100-80:8,a100:8", None, "twice"),
        ("h100", "8:4", "FIRST:LAST:STEP"),
        ("h100", "8:100000:1", "widen the step"),
        ("h100", "10.5", "whole number"),
        ("nothing", "8", "no device"),
    ):
        with pytest.raises(PlanError, match=words):
            parse_cluster(hardware, gpus)


def test_verb() -> None:
    words = ["search", "gpt4", "--hardware=a100-80:4096,h100:2048", "--batch=60M", "--price=2", "--json"]
    run = CliRunner().invoke(plan_app, words)
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    options = {r["option"]: r["tokens_per_s"]["p50"] for r in told["options"]}
    assert set(options) == {
        "a100-80 alone",
        "h100 alone",
        "replicas of one generation each",
        "one pipeline over both generations",
    }
    together = max(v for k, v in options.items() if "alone" not in k)
    assert told["tokens_per_s"]["p50"] == together > max(v for k, v in options.items() if "alone" in k)
    assert 0 <= told["waiting_share"] < 0.2
    assert min(r["waiting_share"] for r in told["generations"]) == 0
    best = next(r for r in told["options"] if r["tokens_per_s"]["p50"] == together)
    assert best["run_usd"]["p50"] == pytest.approx(6144 * 24 * 2 * told["days"]["p50"])


def test_nothing_fits() -> None:
    with pytest.raises(PlanError, match=r"no layout of gpt4 fits 8 x a100-80, 8 x h100 together"):
        mixed_sheet(read_shape("gpt4"), Job(8192, 64), STACK, [Group(A100, 8), Group(H100, 8)], 1e12, [1, 2], Space())
