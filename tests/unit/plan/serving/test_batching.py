"""Continuous batching: Little's law, the open and the closed loop, pipelines, fixed batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.profile import profile
from moesaic.plan.serving.replica import replica
from moesaic.plan.shapes import read_shape

ENGINES = ("vllm", "trtllm", "sglang")


def timer(name: str = "llama-3-70b", engine: str = "vllm", first: int | None = None, **layout: int) -> ReplicaTimer:
    return ReplicaTimer(replica(read_shape(name), device("h100"), **(layout or {"tp": 8})), profile(), engine, first)


@settings(max_examples=40)
@given(st.sampled_from(ENGINES), st.integers(1, 800), st.integers(16, 20_000), st.integers(2, 4000))
def test_littles_law_holds(engine: str, clients: int, prompt: int, output: int) -> None:
    for together in (False, True):
        load = timer(engine=engine).closed(
            np.array([float(clients)]), np.array([prompt]), np.array([output]), together=together
        )
        stay = load.first_s[0] + (output - 1) * load.token_s[0]
        rate = load.requests_per_s[0]
        assert rate * stay == pytest.approx(clients, rel=1e-6)
        assert rate * (output - 1) * load.token_s[0] == pytest.approx(load.decoding[0], rel=1e-3)
        assert load.token_s[0] >= load.step_s[0] > 0


@settings(max_examples=30)
@given(st.sampled_from(ENGINES), st.integers(16, 8000), st.integers(8, 2000))
def test_more_clients_wait_longer_for_a_token_and_get_more_out(engine: str, prompt: int, output: int) -> None:
    clients = np.array([1, 2, 4, 8, 32, 128, 256.0])
    load = timer(engine=engine).closed(clients, np.array(prompt), np.array(output))
    assert np.all(np.diff(load.token_s) > -1e-12)
    assert load.token_s[-1] > load.token_s[0]
    # At saturation a prompt costs a trifle more beside more decoding sequences.
    assert np.all(np.diff(load.requests_per_s) > -1e-3 * load.requests_per_s[1:])


def test_arrays_of_clients_match_one_at_a_time() -> None:
    clients = np.array([1.0, 16, 200])
    both = timer().closed(clients, np.array(1000), np.array(300)).token_s
    each = [timer().closed(np.array([c]), np.array([1000]), np.array([300])).token_s[0] for c in clients]
    np.testing.assert_allclose(both, each, rtol=1e-5)


def test_prompts_stretch_the_time_between_tokens() -> None:
    def stretch(prompt: int) -> float:
        load = timer().closed(np.array([64.0]), np.array([prompt]), np.array([200]))
        return float((load.token_s / load.step_s)[0])

    assert stretch(16) < 1.05
    assert stretch(8000) > 2


def test_an_open_load_meets_its_rate_or_says_what_it_could_meet() -> None:
    t = timer()
    load = t.open(2.0, 1000, 250, limit=256)
    assert load.requests_per_s[0] == pytest.approx(2.0, rel=1e-3)
    closed = t.closed(load.concurrency, np.array([1000]), np.array([250]))
    assert closed.requests_per_s[0] == pytest.approx(2.0, rel=1e-3)
    most = t.closed(np.array([256.0]), np.array([1000]), np.array([250])).requests_per_s[0]
    with pytest.raises(PlanError, match=rf"overloaded: .* {most:.3g} sustained by the 256 sequences that fit"):
        t.open(most * 1.01, 1000, 250, limit=256)


def test_a_pipeline_takes_its_slowest_stage_once_for_each_stage() -> None:
    t = timer("gpt4", tp=8, pp=16)
    zero, one = np.zeros(1), np.array([16.0 * 12])
    slowest = max(s.run(one / 16, np.array([4000.0]), zero, zero).seconds[0] for s in t.timers)
    step = t.step(one, np.array([4000.0]))[0]
    assert 16 * slowest < step < 16 * slowest * 1.05  # the rest hands over between stages


def test_a_stage_of_embeddings_alone_leaves_the_pace_to_the_others() -> None:
    sequences, context = np.array([512.0]), np.array([4000.0])
    even, alone = timer("gpt4", tp=8, pp=16), timer("gpt4", first=0, tp=8, pp=16)
    assert alone.timers[0].stage.layers == 0
    assert alone.step(sequences, context)[0] == pytest.approx(even.step(sequences, context)[0], rel=0.1)


def test_a_fixed_batch_prefills_and_then_decodes() -> None:
    t = timer(engine="static")
    prefill, steps = t.static(np.array([32.0]), np.array([512.0]), np.array([128.0]))
    assert steps[0] == pytest.approx(127 * t.step(np.array([32.0]), np.array([512.0 + 64]))[0])
    more, _ = t.static(np.array([64.0]), np.array([512.0]), np.array([128.0]))
    assert 1.9 < more[0] / prefill[0] < 2.1  # two passes of 16,384 tokens
    _, longer = t.static(np.array([32.0]), np.array([512.0]), np.array([256.0]))
    assert longer[0] > 2 * steps[0]


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no engine 'mine'; use one of static, trtllm, vllm, sglang"):
        timer(engine="mine")
