"""The search against brute force: the same layouts, none that fits lost, the best one, every Pareto point."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_cases import dominated
from typer.testing import CliRunner

from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.plan.choice import choices
from moesaic.plan.device import Device, device
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.job import Job
from moesaic.plan.layouts import FULL, Layouts, join, valid
from moesaic.plan.memory import memory, memory_total
from moesaic.plan.search import Search, goodputs, pareto, search
from moesaic.plan.search_api import read_workload, search_plan
from moesaic.plan.search_sheet import Question, search_sheet
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape
from moesaic.plan.sheet import Z90
from moesaic.plan.space import Space, divisors, grids
from moesaic.plan.stack import stack, stacks
from moesaic.plan.step import step_time

STACK = stack("megatron-core")
NARROW = replace(device("a100-80"), domain=4, memory_gb=6.0)
DENSE = Shape("dense", n_layers=6, d_model=512, n_heads=8, n_kv_heads=4, head_dim=64, d_ff=2048, vocab_size=8192)
SPARSE = replace(DENSE, name="sparse", n_kv_heads=1, n_experts=4, top_k=2, d_expert=1024, dense_layers=1)
FEW = Space(micro_batches=(1, 2), idle=0.1)
NAMES = ("tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks", "zero", "recompute")
Row = tuple[int, ...]


def brute(shape: Shape, job: Job, device: Device, gpus: int, space: Space) -> set[Row]:
    """Every layout by loops over all degrees and rules written out, dp being the largest that folds the experts."""
    upto = range(1, gpus + 1)
    found = {}
    for tp, cp, ep in product(upto, upto, range(1, shape.n_experts + 1)):
        if tp > device.domain or device.domain % tp or shape.n_heads % tp or shape.d_model % tp or shape.d_ff % tp:
            continue
        if shape.n_kv_heads % tp and tp % shape.n_kv_heads:
            continue
        if job.seq_len % cp or (cp > 1 and job.seq_len // cp < 4096) or shape.n_experts % ep:
            continue
        for etp in {tp} if shape.n_experts == 1 else {1, tp}:
            if shape.n_experts > 1 and shape.d_expert % etp:
                continue
            for pp in range(1, shape.n_layers + 1):
                dps = [n for n in range(1, gpus // (tp * cp * pp) + 1) if n * cp * tp % (ep * etp) == 0]
                for v in range(1, shape.n_layers + 1):
                    stages = pp * v
                    if v > 1 and (pp == 1 or -shape.n_layers % stages > 2 or stages > shape.n_layers + 2):
                        continue
                    if dps:
                        found[tp, pp, cp, dps[-1], ep, etp, v] = gpus - tp * cp * pp * dps[-1]
    allowed = max(0.02 * gpus, 7) if space.idle is None else space.idle * gpus
    out = set()
    for (tp, pp, cp, dp, ep, etp, v), idle in found.items():
        for b, z, r in product(space.micro_batches, space.zero, space.recompute):
            m = job.batch // (dp * b)
            if idle <= allowed and (m - m % pp if v > 1 else m) >= 1:
                out.add((tp, pp, cp, dp, ep, etp, b, v, z, r))
    return out


def rows(layouts: Layouts) -> list[Row]:
    return list(zip(*(getattr(layouts, n).tolist() for n in NAMES), strict=True))


def flat(found: set[Row]) -> Layouts:
    return Layouts(**dict(zip(NAMES, np.array(sorted(found)).T, strict=True)))


def everything(shape: Shape, job: Job, device: Device, gpus: int, space: Space) -> Layouts:
    parts = [g.layouts.pick(np.flatnonzero(g.runs)) for g in grids(shape, device, job.seq_len, job.batch, gpus, space)]
    return join(parts)


CASES = [
    (DENSE, Job(8192, 12), 12),
    (DENSE, Job(8192, 9), 7),
    (SPARSE, Job(8192, 12), 12),
    (SPARSE, Job(4096, 40), 13),
    (SPARSE, Job(16384, 8), 16),
    (replace(SPARSE, d_expert=1026), Job(4096, 16), 8),
]


@pytest.mark.parametrize(("shape", "job", "gpus"), CASES)
def test_enumerates_what_brute_force_does(shape: Shape, job: Job, gpus: int) -> None:
    found = everything(shape, job, NARROW, gpus, FEW)
    listed = rows(found)
    assert len(listed) == len(set(listed))
    assert set(listed) == brute(shape, job, NARROW, gpus, FEW)
    assert valid(shape, found, job.batch).all()
    assert (found.world <= gpus).all()


@pytest.mark.parametrize(("shape", "job", "gpus"), CASES)
def test_memory_filter_loses_nothing_and_the_best_is_the_best(shape: Shape, job: Job, gpus: int) -> None:
    every = flat(brute(shape, job, NARROW, gpus, FEW))
    sizes = memory(shape, job, every, STACK).total
    half = replace(NARROW, memory_gb=float(np.median(sizes)) * 1.0001 / 1e9)
    fits = sizes <= half.memory_gb * 1e9
    result = search(shape, job, half, STACK, gpus, FEW)
    assert 0 < fits.sum() < len(fits), "the case should divide layouts"
    assert set(rows(result.found.layouts)) == set(rows(every[fits]))
    assert result.funnel.fit == fits.sum()
    assert result.funnel.fed == len(fits)
    fitting = every[fits]
    tokens = fitting.micro_batches(job.batch) * fitting.dp * fitting.micro_batch * job.seq_len
    speed = tokens / step_time(shape, job, fitting, half, STACK).total
    kept = [outcome(shape.total_parameters, int(n), Faults()).goodput for n in fitting.world]
    for objective, score in (("days", speed * kept), ("cost", speed * kept / gpus), ("mfu", speed / fitting.world)):
        best = result.found.best(objective, 3)  # type: ignore[arg-type]
        assert best.score(objective)[0] == pytest.approx(score.max(), rel=1e-12)  # type: ignore[arg-type]
        assert (np.diff(best.score(objective)) <= 0).all()  # type: ignore[arg-type]
        at = rows(fitting).index(rows(best.layouts)[0])
        assert score[at] == pytest.approx(score.max(), rel=1e-12)


@pytest.mark.parametrize("name", ["gpt4", "deepseek-v3", "gpt3", "llama-3-70b"])
def test_a_grid_is_the_same_as_its_layouts_one_by_one(name: str) -> None:
    shape, job, a100 = read_shape(name), Job(4096, 2000), device("a100-80")
    for profile in (STACK, stacks()["megatron-2021"], stacks()["fsdp"]):
        for grid in list(grids(shape, a100, job.seq_len, job.batch, 768, Space()))[1::7]:
            place = np.flatnonzero(grid.runs)[::11]
            if not len(place):
                continue
            one = grid.layouts.pick(place)
            with np.errstate(all="ignore"):
                whole = memory_total(shape, job, grid.layouts, profile)
                seconds = step_time(shape, job, grid.layouts, a100, profile).total
            held = memory(shape, job, one, profile).total
            assert np.allclose(np.broadcast_to(whole, grid.runs.shape).flat[place], held, rtol=1e-12)
            alone = step_time(shape, job, one, a100, profile)
            assert np.allclose(np.broadcast_to(seconds, grid.runs.shape).flat[place], alone.total, rtol=1e-12)
            assert np.isfinite(alone.total).all()


def test_front_of_a_search_is_the_front_of_all_that_fits() -> None:
    found = search(SPARSE, Job(8192, 12), NARROW, STACK, 12, FEW).found
    points = np.stack([-found.rate, found.memory], axis=1)
    assert set(pareto(points).tolist()) == set(range(len(found))) - dominated(points)
    sheet, _ = search_sheet(Question(SPARSE, Job(8192, 12), NARROW, STACK, (12,), 1e9, top=1000, space=FEW))
    table = next(t for t in sheet.tables if t.key == "pareto_mfu_memory")
    front = {(-points[i, 0], points[i, 1]) for i in pareto(points)}
    assert [r["memory_gb"] for r in table.rows] == pytest.approx(sorted((m / 1e9 for _, m in front), reverse=True))
    short, _ = search_sheet(Question(SPARSE, Job(8192, 12), NARROW, STACK, (12,), 1e9, top=2, space=FEW))
    few = next(t for t in short.tables if t.key == "pareto_mfu_memory")
    assert list(few.rows) == [table.rows[0], table.rows[-1]]  # --top keeps both ends


@pytest.fixture(scope="module")
def gpt4() -> Search:
    shape, job, _ = read_workload("gpt4", None, "60M")
    return search(shape, job, device("a100-80"), STACK, 25_000)


def test_described_cluster(gpt4: Search) -> None:
    best = gpt4.found.best("days", 1)
    row = best.layouts.row(0)
    assert (int(best.gpus[0]), int(best.used[0])) == (25_000, 24_960)
    assert (row["tp"], row["ep"]) == (8, 16)  # the described 8-way limit follows from the domain
    assert 60 < 13e12 / best.speed[0] / 86_400 < 130
    assert gpt4.funnel.enumerated > 400_000  # in how little time: benchmarks/plan_search.py
    assert set(np.unique(gpt4.found.used)) <= set(range(24_500, 25_001))


def test_the_described_layout_is_among_those_found(gpt4: Search) -> None:
    described = (8, 15, 1, 208, 16, 1, 1, 1, 1, FULL)  # without full recomputation its activations do not fit
    alike = [i for i, g in enumerate(gpt4.found.grids) if {8.0, 16.0} <= {g.tp.max(), g.ep.max()} and g.cp.min() == 1]
    assert described in rows(gpt4.found[np.isin(gpt4.found.grid, alike)].layouts)


def test_the_whole_search_looks_at_hundreds_of_thousands(gpt4: Search) -> None:
    assert gpt4.funnel.enumerated > 400_000  # how quickly: benchmarks/plan_search.py


def test_goodput_of_many_is_that_of_each() -> None:
    sizes = np.array([8, 1024, 8, 24_960])
    each = [outcome(DENSE.total_parameters, int(n), Faults()).goodput for n in sizes]
    assert goodputs(DENSE, sizes, Faults()).tolist() == each


def test_shared_work_is_independent_of_the_number_of_layouts_asked_for() -> None:
    result = search(SPARSE, Job(8192, 12), NARROW, STACK, 12, FEW).found
    ten, three = result.best("days", 10), result.best("days", 3)
    assert rows(ten.layouts)[:3] == rows(three.layouts)
    assert len(result.best("days", 10**9)) == len(result)


def test_a_choice_is_what_memory_and_step_time_say() -> None:
    shape, job, _ = read_workload("gpt4", None, "60M")
    layouts = Layouts.of(tp=8, pp=15, dp=208, ep=16, chunks=np.array([1, 8]), recompute=1)
    plain, interleaved = choices(shape, job, device("a100-80"), STACK, layouts, np.full(2, 25_000), np.ones(2))
    assert (plain.estimate.micro_batches, interleaved.estimate.micro_batches) == (35, 30)  # whole rounds of 15
    assert (plain.estimate.sequences, interleaved.estimate.sequences) == (7280, 6240)
    assert plain.estimate.time.bubble_fraction[0] == pytest.approx(14 / 49)
    assert plain.tokens_per_expert == 7280 * 8192 / 8
    seconds = step_time(shape, job, layouts, device("a100-80"), STACK).total
    assert plain.estimate.seconds.p50 == pytest.approx(seconds[0])
    assert sum(plain.seconds().values()) == pytest.approx(plain.estimate.seconds.p50)
    days = plain.days(13e12)
    assert days.p90 / days.p50 == pytest.approx(np.exp(Z90 * STACK.sigma_sparse))
    paid = plain.dollars(13e12, 2.0)
    assert paid is not None
    assert paid.p50 == pytest.approx(days.p50 * 24 * 2.0 * 25_000)  # those that idle too


def test_a_range_of_devices_takes_the_cheapest() -> None:
    job = Job(4096, 256)
    ask = Question(DENSE, job, device("a100-80"), STACK, (8, 12, 16, 64), 1e12, "cost", price=2.0)
    sheet, best = search_sheet(ask)
    table = next(t for t in sheet.tables if t.key == "by_gpus")
    dollars = {r["devices_asked"]: r["run_usd"].p50 for r in table.rows}  # type: ignore[union-attr]
    assert best.gpus == min(dollars, key=lambda n: dollars[n])  # type: ignore[arg-type,return-value]
    assert sheet["run_usd"].p50 == pytest.approx(min(dollars.values()))  # type: ignore[union-attr]
    days = {r["devices_asked"]: r["days"].p50 for r in table.rows}  # type: ignore[union-attr]
    for n, kept in ((r["devices_asked"], r["on_the_front"]) for r in table.rows):
        beaten = any(m < n and days[m] <= days[n] and dollars[m] <= dollars[n] for m in days)  # type: ignore[operator]
        assert kept or beaten
        assert dollars[n] == pytest.approx(n * 24 * days[n] * 2.0)  # type: ignore[operator]


def test_says_what_is_missing() -> None:
    gpt4_shape, job, _ = read_workload("gpt4", None, "60M")
    with pytest.raises(
        PlanError, match=r"fits the 40 GB of 64 x a100-40.* needs 5\d\d\.\d GB at tp = 8.*1,024 devices"
    ):
        search_sheet(Question(gpt4_shape, job, device("a100-40"), STACK, (64,), 1e12))
    few = replace(job, batch=12)
    with pytest.raises(PlanError, match=r"12 sequences feeds no layout.*fewest\s+replicas are 13;.*106\.5k tokens"):
        search_sheet(Question(gpt4_shape, few, device("a100-80"), STACK, (24_960,), 1e12))
    with pytest.raises(PlanError, match="give --price"):
        search_sheet(Question(DENSE, Job(2048, 64), device("v100"), STACK, (8,), 1e12, "cost"))
    with pytest.raises(PlanError, match="give a share"):
        Space(idle=1.5)


def test_idle_devices() -> None:
    assert Space().allowed_idle(25_000) == 500
    assert Space().allowed_idle(9) == 7
    found = everything(DENSE, Job(2048, 64), device("a100-80"), 9, Space())
    assert set(found.world.tolist()) == {5, 6, 8, 9}
    assert set(everything(DENSE, Job(2048, 64), device("a100-80"), 9, Space(idle=0)).world.tolist()) == {9}


def test_larger_tensor_parallel_groups_only_when_asked() -> None:
    shape, job = read_shape("gpt4"), Job(8192, 7324)
    usual = everything(shape, job, device("a100-80"), 8064, Space(micro_batches=(1,), zero=(1,), recompute=(1,)))
    asked = everything(shape, job, device("a100-80"), 8064, Space(56, None, (1,), (1,), (1,)))
    assert set(usual.tp.tolist()) == {1, 2, 4, 8}
    assert set(asked.tp.tolist()) == {1, 2, 4, 8, 56}  # 24 divides 168 heads, and not the width of a block
    assert set(usual.cp.tolist()) == {1, 2}


@given(st.integers(1, 5000))
def test_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_verb() -> None:
    words = ["search", "gpt4", "--hardware=a100-80", "--gpus=25000", "--tokens=13T", "--batch=60M", "--price=1"]
    run = CliRunner().invoke(plan_app, [*words, "--top=4", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert told["devices_used"] == 24_960
    assert told["idle_devices"] == 40
    assert len(told["top"]) == 4
    assert told["top"][0]["days"] == told["days"]
    assert told["run_usd"]["p50"] == pytest.approx(25_000 * 24 * told["days"]["p50"])
    assert told["days"]["p10"] < told["days"]["p50"] < told["days"]["p90"]
    assert {"batch_tokens", "batch_sequences", "batch_tokens_per_expert"} <= told.keys()
    degrees = [{k: r[k] for k in ("tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks")} for r in told["top"]]
    assert all(a != b for i, a in enumerate(degrees) for b in degrees[:i])


def test_from_python() -> None:
    from moesaic.plan import search_plan as public

    sheet = public("llama-3-8b", "h100", 64, tokens=1e12, price=2.0, why_no_fsdp=True)
    assert sheet["devices_used"] == 64
    assert sheet["gather_ratio"] == 2 * sheet["micro_batches"]  # type: ignore[operator]
    assert sheet["memory_gb"] <= 80  # type: ignore[operator]
    with pytest.raises(PlanError, match="one generation"):
        search_plan("llama-3-8b", "h100:8,a100-80:8", why_no_fsdp=True)
    with pytest.raises(PlanError, match="above 0"):
        search_plan("llama-3-8b", "h100", 8, price=-1)


def test_workload_of_a_recipe_and_of_a_shape() -> None:
    shape, job, tokens = read_workload("gpt4")
    assert (job.seq_len, job.batch, tokens) == (8192, 7280, 13e12)
    other, job, tokens = read_workload("llama-3-70b", seq_len="4k")
    assert (job.seq_len, job.batch) == (4096, 1024)
    assert tokens == 20 * other.active_parameters
    with pytest.raises(PlanError, match="holds no sequence"):
        read_workload("gpt4", batch="1k")
    assert shape.n_layers == 120
