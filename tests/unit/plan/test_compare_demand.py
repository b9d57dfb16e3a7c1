"""From requests per second to clusters."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.plan.compare.demand import Cluster, clusters_needed, serving_cluster
from moesaic.plan.compare.scenarios import Serving
from moesaic.plan.device import device
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.profile import profile
from moesaic.plan.sheet import Interval

DEMAND = Interval(100, 200, 400)
DESCRIBED = Serving(
    "gpt4", DEMAND, 1500, 300, 3.0, 100.0, 1.5, "fp8", None, "vllm", 1024, (("tp", 8), ("pp", 16))
)  # fmt: skip
ONE = np.ones(1)


@cache
def on_h100() -> Cluster:
    return serving_cluster(DESCRIBED, device("h100"))


@pytest.fixture
def described() -> Cluster:
    return on_h100()


def test_capacity_is_the_most_within_the_targets(described: Cluster) -> None:
    found = described.capacity(ONE, ONE)
    assert found.meets[0]
    assert found.token_s[0] <= 0.1
    assert found.first_s[0] <= 3
    n = found.sequences[0]
    state = ReplicaTimer(described.model, profile(), "vllm").closed(
        np.array([n, n * 1.1]), np.array(1500.0), np.array(300.0), 1024
    )
    assert found.requests_per_s[0] == pytest.approx(state.requests_per_s[0], rel=1e-6)
    assert state.token_s[1] > 0.1  # ten percent more would be too slow


@settings(derandomize=True, deadline=None)
@given(st.floats(40, 400), st.floats(1, 3), st.floats(0.5, 10))
def test_tighter_targets_never_need_fewer_clusters(tpot: float, tighter: float, ttft: float) -> None:
    base = on_h100()
    loose = replace(base, given=replace(DESCRIBED, tpot_ms=tpot, ttft_s=ttft)).capacity(ONE, ONE)
    tight = replace(base, given=replace(DESCRIBED, tpot_ms=tpot / tighter, ttft_s=ttft / tighter)).capacity(ONE, ONE)
    assert not (tight.meets[0] and not loose.meets[0])
    if tight.meets[0]:
        assert tight.requests_per_s[0] <= loose.requests_per_s[0]


@settings(derandomize=True, deadline=None)
@given(st.floats(0.1, 1e4), st.floats(1, 5), st.floats(1e-3, 1e3))
def test_whole_clusters_serve_the_peak_and_one_less_does_not(demand: float, peak: float, each: float) -> None:
    n = float(clusters_needed(np.array([demand]), peak, np.array([each]))[0])
    assert n == int(n) >= 1 or demand * peak < 1e-6 * each
    assert n * each >= demand * peak * (1 - 1e-6)
    assert (n - 1) * each < demand * peak


def test_targets_that_nothing_meets_are_said_and_priced_at_the_most_served(described: Cluster) -> None:
    hopeless = replace(described, given=replace(DESCRIBED, tpot_ms=1.0))
    found = hopeless.capacity(ONE, ONE)
    assert not found.meets[0]
    free = replace(described, given=replace(DESCRIBED, tpot_ms=1e9, ttft_s=1e9)).capacity(ONE, ONE)
    assert found.requests_per_s[0] == free.requests_per_s[0]


def test_samples_that_miss_run_at_the_planned_load(described: Cluster) -> None:
    floor = described.token_s[0] / 0.1  # factor at which even one sequence is too slow
    found = described.capacity(np.array([1.0, 1.1 / floor]), np.ones(2))
    assert found.meets.tolist() == [True, False]
    assert found.sequences[0] == found.sequences[1]
    assert found.token_s[1] == pytest.approx(found.token_s[0] * 1.1 / floor)


@pytest.mark.parametrize("name", ["a100-80", "h100", "gb200"])
def test_the_chosen_cluster_serves_more_for_each_device_than_the_described_one(name: str) -> None:
    given = replace(DESCRIBED, weights="int8" if name == "a100-80" else "fp8")
    fixed = serving_cluster(given, device(name))
    free = serving_cluster(replace(given, layout=()), device(name))
    assert free.capacity(ONE, ONE).meets[0]
    assert free.most >= 1

    def each(found: Cluster) -> float:
        return float(found.capacity(ONE, ONE).requests_per_s[0]) / found.model.devices

    assert each(free) >= each(fixed)
    assert free.given.requests_per_s == DEMAND


def test_the_first_token_binds_too(described: Cluster) -> None:
    """Half the time that the planned load takes to its first token leaves fewer requests, or none."""
    free = described.capacity(ONE, ONE)
    cap = float(np.sqrt(described.first_s[0] * free.first_s[0]))  # between one sequence's and the planned load's
    bound = replace(described, given=replace(DESCRIBED, ttft_s=cap)).capacity(ONE, ONE)
    assert bound.meets[0]
    assert bound.first_s[0] <= cap < free.first_s[0]
    assert bound.requests_per_s[0] < free.requests_per_s[0]
    hopeless = replace(described, given=replace(DESCRIBED, ttft_s=float(described.first_s[0]) / 2))
    assert not hopeless.capacity(ONE, ONE).meets[0]


def test_the_chosen_cluster_is_the_best_of_some_tried_by_hand() -> None:
    free = serving_cluster(replace(DESCRIBED, layout=()), device("h100"))

    def each(found: Cluster) -> float:
        return float(found.capacity(ONE, ONE).requests_per_s[0]) / found.model.devices

    for layout in ((8, 3, 1, 1), (4, 1, 16, 16), (2, 2, 16, 16), (8, 1, 8, 16), (4, 2, 8, 16), (2, 3, 16, 16)):
        tried = tuple(zip(("tp", "pp", "dp", "ep"), layout, strict=True))
        assert each(free) >= each(serving_cluster(replace(DESCRIBED, layout=tried), device("h100")))
