"""Pipelines: simulations equal the closed forms, nothing runs before its inputs."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.schedule import (
    KINDS,
    Kind,
    Op,
    Orders,
    advice,
    held_micro_batches,
    in_flight,
    interleaved_bubble,
    lower_bound,
    nearest_schedulable,
    offer,
    orders,
    plain_bubble,
    schedulable,
    simulate,
    step_bubble,
    uneven_step,
    whole_batches,
    zero_bubble,
)

COSTS = st.tuples(st.integers(1, 5), st.integers(1, 8))


@st.composite
def plans(draw: st.DrawFn, kinds: tuple[Kind, ...] = KINDS, most: int = 40) -> Orders:
    kind = draw(st.sampled_from(kinds))
    p, m, v = draw(st.integers(1, 8)), draw(st.integers(1, most)), draw(st.integers(2, 4))
    v = {"gpipe": 1, "1f1b": 1, "zbv": 2}.get(kind, v)
    if v > 1 and kind != "zbv":
        m -= m % max(1, m // p)
    return orders(kind, p, m, v)


# "Bubbles of the PP15 layout", counted in cells of PyTorch's spaced tables, in per cent.
CELLS: list[tuple[Kind, int, dict[int, float]]] = [
    ("interleaved", 2, {30: 25.9, 36: 22.6, 60: 14.9}),
    ("interleaved", 8, {30: 8.0, 36: 6.8, 60: 4.2}),
    ("zero_bubble", 2, {30: 7.2, 36: 6.1, 60: 3.7}),
    ("zbv", 2, {30: 7.2, 36: 6.1, 60: 3.7}),
]


@pytest.mark.parametrize(("kind", "v", "published"), CELLS)
def test_cells_of_the_pp15_tables(kind: Kind, v: int, published: dict[int, float]) -> None:
    for m, percent in published.items():
        assert round(100 * simulate(orders(kind, 15, m, v)).cell_bubble, 1) == percent


def test_closed_forms_of_the_described_layout() -> None:
    plain, two, four, eight = 100 * interleaved_bubble(15, 35, np.array([1, 2, 4, 8]))
    assert (round(plain, 1), round(two, 1), round(four, 1), round(eight, 1)) == (28.6, 16.7, 9.1, 4.8)
    assert plain_bubble(15, 488 / 208) == pytest.approx(0.856, abs=5e-4)  # a 4 M-token start on all 208 replicas
    grid = zero_bubble(np.array([[4], [15]]), np.array([30, 36, 60]), 2)
    assert grid.shape == (2, 3)
    assert grid[1] == pytest.approx([0.0722, 0.0609, 0.0374], abs=5e-5)


@given(p=st.integers(1, 10), m=st.integers(1, 50), costs=COSTS)
def test_plain_schedules_equal_the_closed_form(p: int, m: int, costs: tuple[int, int]) -> None:
    f, b = costs
    for kind in ("gpipe", "1f1b"):
        simulation = simulate(orders(kind, p, m), f, b)
        assert simulation.time == (m + p - 1) * (f + b)
        assert simulation.bubble == pytest.approx(float(plain_bubble(p, m)), abs=1e-12)


@given(plan=plans(("interleaved",)), costs=COSTS)
def test_interleaved_equals_the_closed_form(plan: Orders, costs: tuple[int, int]) -> None:
    simulation = simulate(plan, *costs)
    assert simulation.bubble == pytest.approx(float(interleaved_bubble(plan.p, plan.m, plan.v)), abs=1e-12)
    if plan.m >= plan.p:
        textbook = (plan.p - 1) / (plan.v * plan.m + plan.p - 1)
        assert simulation.bubble == pytest.approx(textbook, abs=1e-12)


@given(plan=plans(("zero_bubble", "zbv")), costs=st.lists(st.integers(1, 6), min_size=3, max_size=3))
def test_split_backwards_equal_the_closed_form(plan: Orders, costs: list[int]) -> None:
    if plan.kind == "zbv":
        f = w = costs[0]
        i = min(max(f, costs[1]), 2 * f)
    else:
        w, f = sorted(costs[:2])
        i = costs[2]
    simulated = simulate(plan, f, i + w, w / (i + w)).bubble
    closed = float(zero_bubble(plan.p, plan.m, plan.v, f, i, w))
    if plan.m >= (2 * plan.p - 1 if plan.kind == "zbv" else plan.p):
        assert simulated == pytest.approx(closed, abs=1e-12)
    else:
        assert simulated >= closed - 1e-12


@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (2, 1, 2), (5, 1, 4), (3, 4, 2), (1, 4, 1)])
@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (3, 6, 1), (4, 9, 1), (4, 10, 3)])
def test_split_backwards_wait_for_forwards_or_gradients(f: int, i: int, w: int, p: int, m: int, v: int) -> None:
    closed = float(zero_bubble(p, m, v, f, i, w))
    assert simulate(orders("zero_bubble", p, m, v), f, i + w, w / (i + w)).bubble == pytest.approx(closed, abs=1e-12)


@given(p=st.integers(1, 8), rounds=st.integers(1, 5))
def test_split_backwards_idle_less_than_two_chunks(p: int, rounds: int) -> None:
    m = p * rounds
    two = simulate(orders("interleaved", p, m, 2)).bubble
    assert simulate(orders("zero_bubble", p, m, 2)).bubble <= two + 1e-12
    if rounds > 1:  # with one round ZBV has not the micro-batches that its pattern needs
        assert simulate(orders("zbv", p, m, 2)).bubble <= two + 1e-12


@given(plan=plans())
def test_every_operation_runs_once_and_after_its_inputs(plan: Orders) -> None:
    split = plan.kind in ("zero_bubble", "zbv")
    counts = Counter(op for order in plan.ranks for op in order)
    kinds = "FIW" if split else "FB"
    assert counts == {Op(k, s, i): 1 for k in kinds for s in range(plan.p * plan.v) for i in range(plan.m)}
    simulation = simulate(plan, 1.5, 2.5, 0.3, transfer=0.25)
    at: dict[Op, tuple[float, float]] = {}
    for rank, order in enumerate(plan.ranks):
        spans = [span for span in simulation.spans if span[0] == rank]
        assert [s[3] for s in spans] == [op.kind for op in order]
        for op, (_, begin, end, _), before in zip(order, spans, [None, *spans], strict=False):
            assert plan.rank_of(op.stage) == rank
            assert before is None or begin >= before[2]
            at[op] = begin, end
    gradient, last = ("I" if split else "B"), plan.p * plan.v - 1
    for (kind, stage, i), (begin, _) in at.items():
        if kind == "F":
            needs = [Op("F", stage - 1, i)] if stage else []
        elif kind == "W":
            needs = [Op("I", stage, i)]
        else:
            needs = [Op("F", stage, i)] + ([Op(gradient, stage + 1, i)] if stage < last else [])
        for need in needs:
            hop = 0.25 if plan.rank_of(need.stage) != plan.rank_of(stage) else 0.0
            assert begin >= at[need][1] + hop - 1e-9
    assert 0 <= simulation.bubble < 1
    assert all(-1e-12 <= idle < 1 for idle in simulation.idle)


@given(p=st.integers(1, 12), m=st.integers(1, 40))
def test_1f1b_holds_as_many_micro_batches_as_ranks_follow(p: int, m: int) -> None:
    assert in_flight(orders("1f1b", p, m)) == [min(m, p - s) for s in range(p)]
    assert in_flight(orders("gpipe", p, m)) == [m] * p


@given(p=st.integers(1, 8), rounds=st.integers(2, 4), v=st.integers(2, 4))
def test_interleaved_holds_what_korthikanti_says(p: int, rounds: int, v: int) -> None:
    held = in_flight(orders("interleaved", p, p * rounds, v))
    assert held[0] == p * v + p - 1
    assert held == [(v - 1) * p + 2 * (p - 1 - s) + 1 for s in range(p)]
    assert max(in_flight(orders("zbv", p, p * rounds, 2))) <= 2 * p  # no more than 1F1B on its first rank


@given(plan=plans())
def test_fullest_rank_in_closed_form(plan: Orders) -> None:
    held = max(in_flight(plan)) / plan.v
    closed = float(held_micro_batches(plan.kind, plan.p, plan.m, plan.v))
    if plan.kind == "zbv" and plan.m < 2 * plan.p - 1:
        assert held <= closed
    else:
        assert held == closed


def test_transfers_lengthen_the_fill() -> None:
    assert simulate(orders("1f1b", 2, 1), 1, 2, transfer=0.5).time == 2 * 3 + 2 * 0.5
    assert simulate(orders("interleaved", 4, 8, 2), transfer=0.1).time > simulate(orders("interleaved", 4, 8, 2)).time


def test_deadlocks_are_found() -> None:
    plan = orders("1f1b", 2, 2)
    stuck = Orders("1f1b", 2, 2, 1, (plan.ranks[0], plan.ranks[1][::-1]))
    with pytest.raises(PlanError, match="wait for each other"):
        simulate(stuck)


def test_35_micro_batches() -> None:
    assert not schedulable(35, 15, 8)
    assert schedulable(35, 15)
    assert nearest_schedulable(35, 15, 8) == (34, 36)
    assert nearest_schedulable(35, 15, 8, "megatron") == (30, 45)
    assert offer(35, 15, 8).best == (30, 36)
    said = advice(35, 15, 8)
    assert said is not None
    assert "use 30 or 36" in said
    assert "PyTorch also takes 34" in said
    assert advice(30, 15, 8) is None
    assert "30 or 45" in (advice(36, 15, 8) or "")
    assert "use 15" in (advice(8, 15) or "")
    assert "use 2 or 3" in (advice(2.35, 15, 8) or "")
    assert whole_batches(60e6, 8192, 208, 1, 15, 8) == [51_118_080, 61_341_696]
    assert whole_batches(61_341_696, 8192, 208, 1, 15, 8) == [61_341_696]
    assert whole_batches(60e6, 8192, 208, 1, 15, 8, "megatron") == [51_118_080, 76_677_120]
    with pytest.raises(PlanError, match="use 30 or 36"):
        orders("interleaved", 15, 35, 8)


@given(m=st.integers(1, 90), p=st.integers(1, 16), v=st.integers(1, 8), engine=st.sampled_from(["torch", "megatron"]))
def test_nearest_is_nearest(m: int, p: int, v: int, engine: Any) -> None:
    below, above = nearest_schedulable(m, p, v, engine)
    assert above > m
    assert schedulable(above, p, v, engine)
    assert not any(schedulable(n, p, v, engine) for n in range(m + 1, above))
    assert below is None or (below < m and schedulable(below, p, v, engine))
    assert not any(schedulable(n, p, v, engine) for n in range((below or 0) + 1, m))
    low = offer(m, p, v).everywhere
    assert low is None or (schedulable(low, p, v) and schedulable(low, p, v, "megatron"))


@given(plan=plans(most=24), scale=st.lists(st.floats(0.5, 2), min_size=8, max_size=8))
def test_uneven_ranks(plan: Orders, scale: list[float]) -> None:
    f, b = scale[: plan.p], [2 * x for x in scale[: plan.p]]
    step = uneven_step(plan.kind, plan.p, plan.m, plan.v, f, b)
    assert step.simulation.time >= step.bound - 1e-9
    assert step.bound >= plan.m * 3 * max(f) - 1e-9
    assert step.slowest == max(range(plan.p), key=lambda s: f[s])


def test_one_slow_rank_costs_nearly_all_of_its_slowness() -> None:
    step = uneven_step("1f1b", 15, 36, 1, [1.0] * 14 + [1.1], [2.0] * 14 + [2.2])
    assert step.simulation.time == pytest.approx(
        36 * 3.3 + 14 * 3
    )  # the slowest for each micro-batch, fill of the rest
    assert step.bound == pytest.approx(step.simulation.time)
    assert step.price == pytest.approx((36 * 3.3 + 14 * 3) / (50 * 3 * (1 + 0.1 / 15)) - 1)
    assert lower_bound(36, 8, np.ones(15), 2 * np.ones(15)) == pytest.approx(36 * 3 + 14 * 3 / 8)
    assert step.slowest == 14


@pytest.mark.parametrize(
    ("kind", "m", "v"),
    [("1f1b", 2.5, 1), ("interleaved", 2.5, 8), ("zero_bubble", 3, 2), ("zbv", 9, 2), ("zbv", 40, 2)],
)
def test_step_bubble_is_closed_or_simulated(kind: Kind, m: float, v: int) -> None:
    got = step_bubble(kind, 15, m, v)
    if m == int(m):
        assert got == pytest.approx(simulate(orders(kind, 15, int(m), v)).bubble)
    else:
        assert step_bubble(kind, 15, m + 0.5, v) < got < step_bubble(kind, 15, m - 0.5, v)


def test_fractions_lie_between_their_neighbours() -> None:
    low, mid, high = (step_bubble("zbv", 4, m) for m in (3, 3.5, 4))
    assert mid == pytest.approx((low + high) / 2)
    assert step_bubble("zero_bubble", 4, 0.5, 2) > step_bubble("zero_bubble", 4, 1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orders("dualpipe", 4, 8), "no schedule 'dualpipe'; use one of gpipe"),  # type: ignore[arg-type]
        (lambda: orders("1f1b", 4, 0), "each must be at least 1"),
        (lambda: orders("1f1b", 4, 8, 2), "1f1b has 1 chunk on each rank, not 2"),
        (lambda: orders("zbv", 4, 8, 3), "zbv has 2 chunks on each rank, not 3"),
        (lambda: simulate(orders("1f1b", 4, 8), -1.0), "forward: costs must be positive"),
        (lambda: simulate(orders("1f1b", 4, 8), [1.0, 2.0]), "forward: 2 costs for 4 stages"),
        (lambda: simulate(orders("zbv", 4, 8, 2), weight_share=1.0), "must lie between 0 and 1"),
        (lambda: step_bubble("1f1b", 4, 0), "each must be positive"),
        (lambda: step_bubble("x", 4, 1), "no schedule 'x'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(PlanError) as error:
        call()
    assert message in str(error.value)
