"""Dollars per token, pools, drafts, and the split of a cost ratio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.serving.against import cheapest, modelled, smallest, split
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.cost import Workload, batches_for, curve, disaggregated, prefill_s
from moesaic.plan.serving.profile import profile
from moesaic.plan.serving.replica import replica
from moesaic.plan.serving.speculation import speedup, textbook_speedup, tokens_per_check
from moesaic.plan.shapes import read_shape

GPT4, GPT3 = read_shape("gpt4"), read_shape("gpt3")
WORK = Workload(7282, 910)


def described(hardware: str = "a100-80", weights: str = "bf16") -> ReplicaTimer:
    return ReplicaTimer(replica(GPT4, device(hardware), tp=8, pp=16, weights=weights), profile(), "vllm")


def test_cost_is_price_over_rate() -> None:
    found = curve(described(), np.array([1.0, 8, 64]), WORK, 1.0, 1024)
    np.testing.assert_allclose(found.output_usd_per_1k, 128 / 3600 / found.output_tokens_per_s * 1000)
    np.testing.assert_allclose(found.output_tokens_per_s, found.batch * 16 / found.step_s)
    np.testing.assert_allclose(found.mfu, found.output_tokens_per_s * 2 * GPT4.active_parameters / (128 * 312e12))
    mixed = 128 / 3600 / (found.load.requests_per_s * 8192) * 1000
    np.testing.assert_allclose(found.mixed_usd_per_1k, mixed)
    twice = curve(described(), np.array([1.0, 8, 64]), WORK, 2.0, 1024)
    np.testing.assert_allclose(twice.output_usd_per_1k, 2 * found.output_usd_per_1k)


def test_cost_falls_with_the_batch_and_use_stays_below_the_datasheet() -> None:
    for hardware, weights in (("a100-80", "bf16"), ("h100", "fp8")):
        found = curve(described(hardware, weights), np.arange(1, 600, dtype=float), WORK, 1.0, 1024)
        assert np.all(np.diff(found.output_usd_per_1k) < 0)
        assert np.all(np.diff(found.mixed_usd_per_1k) < 0)
        assert np.all((found.mfu > 0) & (found.mfu < 1))
        assert np.all((found.mbu > 0) & (found.mbu < 1))


def test_the_batch_for_a_price_is_the_first_that_reaches_it() -> None:
    t = described()
    output, mixed = batches_for(t, 0.0049, WORK, 1.0, 1024)
    assert output is not None
    assert mixed is not None
    assert mixed < output  # prompt tokens are cheaper than output tokens
    for batch, of in ((output, "output_usd_per_1k"), (mixed, "mixed_usd_per_1k")):
        usd = getattr(curve(t, np.array([batch - 1.0, batch]), WORK, 1.0, 1024), of)
        assert usd[1] <= 0.0049 < usd[0]
    assert batches_for(t, 1e-9, WORK, 1.0, 1024) == (None, None)


def test_pools_are_sized_by_the_time_that_a_request_takes_in_each() -> None:
    t = described()
    pools = disaggregated(t, 64, WORK, 1.0, 8192)
    prefill = prefill_s(t, np.array([WORK.prompt]), 8192)[0]
    decode = WORK.output * t.step(np.array([1024.0]), np.array([WORK.context]))[0] / 1024
    assert pools.prefill_share == pytest.approx(prefill / (prefill + decode))
    assert pools.requests_per_s == pytest.approx(1 / (prefill + decode))
    longer = disaggregated(t, 64, Workload(WORK.prompt, 4 * WORK.output), 1.0, 8192)
    assert longer.prefill_share < pools.prefill_share
    assert longer.transfer_s == pools.transfer_s


def test_the_textbook_speedups() -> None:
    assert textbook_speedup(0.7, 4, 0.02) == pytest.approx(2.57, abs=0.005)
    assert textbook_speedup(0.8, 4, 0.02) == pytest.approx(3.11, abs=0.005)
    assert tokens_per_check(1.0, 4) == 5
    assert tokens_per_check(0.0, 4) == 1


@given(st.floats(0, 1), st.integers(1, 12))
def test_tokens_of_a_check_are_the_sum_of_the_chances(accept: float, drafts: int) -> None:
    assert tokens_per_check(accept, drafts) == pytest.approx(sum(accept**i for i in range(drafts + 1)))


def test_a_sparse_model_gains_less_from_drafts_at_small_batch() -> None:
    one, context = np.array([16.0]), np.array([4000.0])
    sparse = speedup(described(), one, context, 0.7, 4, 0.02)[0]
    dense = ReplicaTimer(replica(read_shape("llama-3-70b"), device("a100-80"), tp=8), profile(), "vllm")
    full = speedup(dense, np.array([1.0]), context, 0.7, 4, 0.02)[0]
    assert sparse < 0.6 * textbook_speedup(0.7, 4, 0.02)  # a check of 5 tokens reads 7.8 experts, a step 2
    assert 0.85 * textbook_speedup(0.7, 4, 0.02) < full < textbook_speedup(0.7, 4, 0.02)
    assert speedup(described(), one * 32, context, 0.7, 4, 0.02)[0] > sparse


def test_three_times_gpt3_is_arithmetic_and_utilisation() -> None:
    found = split(3.0, GPT4, GPT3)
    assert found.flops == pytest.approx(1.59, abs=0.01)
    assert found.flops * found.utilisation == pytest.approx(3.0)
    small = smallest(GPT3, device("a100-80"), "bf16", 2048)
    assert (small.tp, small.pp) == (8, 1)
    mine = cheapest(replica(GPT4, device("a100-80"), tp=8, pp=16), profile(), "vllm", 8192, 7737)
    theirs = cheapest(small, profile(), "vllm", 2048, 1900)
    both = modelled(mine, theirs)
    assert both.ratio == pytest.approx(mine.gpu_s_per_token / theirs.gpu_s_per_token)
    assert both.utilisation == pytest.approx(theirs.mfu / mine.mfu)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(PlanError, match=r"acceptance 1\.2: give a share from 0 to 1"):
        tokens_per_check(1.2, 4)
    with pytest.raises(PlanError, match="draft cost -1"):
        textbook_speedup(0.7, 4, -1)
    with pytest.raises(PlanError, match="price -1"):
        curve(described(), np.ones(1), WORK, -1.0, 1024)
    with pytest.raises(PlanError, match="cost ratio 0"):
        split(0, GPT4, GPT3)
