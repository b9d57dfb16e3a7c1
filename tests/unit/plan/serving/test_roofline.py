"""The vectorised step against plain scalars, and what must hold whatever the constants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_reference import decode_seconds

from moesaic.plan.device import device
from moesaic.plan.routing import busiest_load, touched
from moesaic.plan.serving.memory import stages
from moesaic.plan.serving.profile import profile
from moesaic.plan.serving.replica import Replica, replica
from moesaic.plan.serving.roofline import StageTimer
from moesaic.plan.shapes import read_shape

SHAPES = {n: read_shape(n) for n in ("gpt4", "mixtral-8x7b", "llama-3-8b", "llama-3-70b", "qwen3-30b-a3b", "gpt3")}
LAYOUTS = [(1, 1, 1), (2, 1, 1), (8, 1, 1), (8, 1, 8), (1, 8, 8), (2, 4, 8), (2, 2, 2)]  # tp, dp, ep
ENGINES = ("vllm", "trtllm", "sglang", "static")


@st.composite
def models(draw: st.DrawFn) -> Replica:
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    tp, dp, ep = draw(st.sampled_from(LAYOUTS))
    hardware = device(draw(st.sampled_from(["a100-40", "h100", "b200", "gb200", "mi300x"])))
    pp = draw(st.sampled_from([1, 3]))
    return replica(shape, hardware, tp=tp, dp=dp, ep=ep if shape.n_experts > 1 else 1, pp=pp)


@settings(max_examples=150)
@given(
    models(), st.sampled_from(ENGINES), st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(1, 100_000)
)
def test_arrays_match_scalars(model: Replica, engine: str, batches: list[int], context: int) -> None:
    zero = np.zeros(1)
    for stage in stages(model):
        timer = StageTimer(model, stage, profile(), engine)
        found = timer.run(np.array(batches, float), np.array([float(context)]), zero, zero).seconds
        expected = [decode_seconds(model, stage, profile(), engine, b, context) for b in batches]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@given(models(), st.sampled_from(ENGINES), st.integers(1, 100_000))
def test_a_larger_batch_takes_longer_and_costs_less_a_token(model: Replica, engine: str, context: int) -> None:
    timer = StageTimer(model, stages(model)[-1], profile(), engine)
    batch, zero = np.arange(1, 400, dtype=float), np.zeros(1)
    seconds = timer.run(batch, np.array([float(context)]), zero, zero).seconds
    assert np.all(np.diff(seconds) > 0)
    assert np.all(np.diff(seconds / batch) < 1e-15)


@given(models(), st.floats(1, 1e5), st.floats(1, 1e5))
def test_longer_contexts_and_prompts_take_longer(model: Replica, a: float, b: float) -> None:
    timer = StageTimer(model, stages(model)[0], profile(), "vllm")
    both, zero = np.array(sorted((a, b))), np.zeros(1)
    decode = timer.run(np.array([7.0]), both, zero, zero).seconds
    prompt = timer.run(zero, zero, both, zero).seconds
    again = timer.run(zero, zero, np.array([100.0]), both).seconds
    for seconds in (decode, prompt, again):
        assert seconds[0] <= seconds[1]


@given(models(), st.integers(1, 500), st.integers(1, 8))
def test_drafts_cost_at_least_a_step_and_less_than_steps_of_their_own(model: Replica, batch: int, drafts: int) -> None:
    timer = StageTimer(model, stages(model)[-1], profile(), "vllm")
    one, zero, context = np.array([float(batch)]), np.zeros(1), np.array([2000.0])
    step = timer.run(one, context, zero, zero).seconds[0]
    check = timer.run(one, context, zero, zero, drafts + 1).seconds[0]
    assert step < check < (drafts + 1) * step


def test_attention_of_prompts_is_half_a_square_beside_a_rectangle() -> None:
    shape, c = SHAPES["llama-3-8b"], profile()
    model = replica(shape, device("h100"))
    timer, zero = StageTimer(model, stages(model)[0], c, "vllm"), np.zeros(1)
    each = 4 * shape.n_layers * shape.n_heads * shape.head_dim / (model.device.peak("bf16") * c.attention)

    def attention(prompt: float, before: float, prompts: float = 1.0) -> float:
        return float(timer.run(zero, zero, np.array([prompt]), np.array([before]), prompts=prompts).attention[0])

    assert attention(4000, 0) == pytest.approx(each * 4000**2 / 2)
    # A join with the time to read 4,000 cached tokens, small beside the arithmetic, keeps it above the rectangle alone.
    assert each * (2000 * 4000 + 2000**2 / 2) < attention(2000, 4000) < 1.2 * each * (2000 * 4000 + 2000**2 / 2)
    assert attention(1000, 0, prompts=4) == pytest.approx(4 * attention(1000, 0))


def test_experts_touched_are_those_of_random_routing() -> None:
    rng = np.random.default_rng(0)
    for batch in (1, 4, 16, 64):
        trials = [len({e for _ in range(batch) for e in rng.choice(16, 2, replace=False)}) for _ in range(3000)]
        assert touched(16, 2, np.array([float(batch)]))[0] == pytest.approx(np.mean(trials), rel=0.01)


def test_the_busiest_group_is_near_what_routing_draws() -> None:
    rng, groups, experts, k, batch = np.random.default_rng(1), 8, 64, 4, 12
    size = experts // groups
    seen, load = [], []
    for _ in range(3000):
        picks = np.stack([rng.choice(experts, k, replace=False) for _ in range(batch)])
        seen.append(max(len(np.unique(picks[picks // size == g])) for g in range(groups)))
        load.append(np.bincount((picks // size).ravel(), minlength=groups).max())
    one = np.array([float(batch)])
    assert touched(experts, k, one, groups)[0] == pytest.approx(np.mean(seen), rel=0.12)
    assert busiest_load(k, one, groups)[0] == pytest.approx(np.mean(load), rel=0.25)


@given(st.integers(1, 400), st.sampled_from([1, 2, 8, 16, 64]), st.integers(1, 8))
def test_touched_grows_and_never_exceeds_the_group(batch: int, groups: int, top_k: int) -> None:
    found = touched(64, top_k, np.array([batch, batch + 1.0]), groups)
    assert found[0] <= found[1] + 1e-12 <= 64 / groups + 1e-9
    assert found[0] <= top_k * batch + 1e-9


def test_a_wider_tensor_group_pays_the_network_beyond_its_domain() -> None:
    def collectives(hardware: str) -> float:
        model = replica(SHAPES["llama-3-70b"], device(hardware), tp=16)
        timer, zero = StageTimer(model, stages(model)[0], profile(), "vllm"), np.zeros(1)
        return float(timer.run(np.array([256.0]), zero, zero, zero).collectives[0])

    assert collectives("b200") > 2 * collectives("gb200")  # a domain of 8 and one of 72, links of one speed
