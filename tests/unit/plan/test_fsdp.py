"""FSDP's gathers in a pipeline: counted by hand for the described system, and against the step that follows."""

from dataclasses import replace

import numpy as np
import pytest

from moesaic.plan.device import device
from moesaic.plan.estimate import Estimate, estimate
from moesaic.plan.fsdp import add_why_no_fsdp, gathers
from moesaic.plan.job import Job
from moesaic.plan.layouts import Layouts
from moesaic.plan.memory import memory
from moesaic.plan.shape import Shape, shape_of
from moesaic.plan.sheet import Sheet
from moesaic.plan.stack import stack
from moesaic.recipe import read_recipe

STACK, A100 = stack("megatron-core"), device("a100-80")


@pytest.fixture(scope="module")
def gpt4() -> Shape:
    return shape_of(read_recipe("gpt4").model, "gpt4")


def choice(shape: Shape, batch: int = 7280, **degrees: int) -> Estimate:
    layouts = Layouts.of(**{"tp": 8, "pp": 15, "dp": 208, **degrees})
    return estimate(shape, Job(8192, batch), A100, STACK, layouts)


def test_described_layout_gathers_35_times_each_way(gpt4: Shape) -> None:
    g = gathers(choice(gpt4, ep=1))
    # Eight layers of attention, norms, router and 16 experts over 8 tensor ranks; one key/value head on each rank.
    d, f = 10_752, 28_672
    attention = d * 2 * 168 * 128 / 8 + d * 2 * 128
    # The last stage holds most: the embedding's copy and the final norm.
    stage = 8 * (attention + 2 * d + d * 16 + 16 * 3 * d * f / 8) + 100_352 * d / 8 + d
    assert g.micro_batches == 35
    assert g.parameters == pytest.approx(stage, rel=1e-12)
    assert g.gather_once == pytest.approx(2 * stage * 207 / 208, rel=1e-12)
    assert g.fsdp_micro == pytest.approx(2 * g.gather_once)
    assert g.fsdp_step / g.gather_once == pytest.approx(70)
    assert g.fsdp_step > 2e12  # 2 TB through one device's network card in every step


def test_seconds_are_bytes_over_the_rate_of_the_network(gpt4: Shape) -> None:
    g = gathers(choice(gpt4, ep=1))
    rate = A100.network_gb_s * STACK.network * 1e9  # tp fills the node: a card for each rank
    assert g.gather_once_s == pytest.approx(g.gather_once / rate, rel=1e-12)
    assert g.fsdp_step_s == pytest.approx(70 * g.gather_once_s)
    assert g.scatter_once == 2 * g.gather_once  # fp32 gradients against bf16 weights
    assert g.zero1_all == pytest.approx(3 * g.gather_once)
    assert g.fsdp_all == pytest.approx(35 * 4 * g.gather_once)


def test_step_and_memory_are_the_models(gpt4: Shape) -> None:
    one = choice(gpt4, ep=16, zero=1)
    three = choice(gpt4, ep=16, zero=3)
    for g in (gathers(one), gathers(three)):  # whichever of them was chosen
        assert g.step_zero1_s == pytest.approx(one.seconds.p50, rel=1e-12)
        assert g.step_zero3_s == pytest.approx(three.seconds.p50, rel=1e-12)
        assert g.saved == pytest.approx(float((one.memory.total - three.memory.total)[0]), rel=1e-12)
    exchange = 35 * (2 * g.gather_once_s + g.scatter_once_s)
    assert three.time.data_parallel[0] <= exchange * (1 + 1e-12)
    assert three.time.data_parallel[0] >= exchange - 35 * g.busy_s


def test_more_micro_batches_gather_more(gpt4: Shape) -> None:
    few, many = gathers(choice(gpt4, 7280)), gathers(choice(gpt4, 14_560))
    assert many.fsdp_step == pytest.approx(2 * few.fsdp_step)
    assert many.gather_once == few.gather_once


def test_sheet_says_it(gpt4: Shape) -> None:
    sheet = Sheet("x")
    g = add_why_no_fsdp(sheet, choice(gpt4, ep=16))
    assert sheet["gather_ratio"] == 70
    assert sheet["fsdp_gather_step_gb"] == pytest.approx(g.fsdp_step / 1e9)
    assert "70 times a step, 35 micro-batches forward and backward" in sheet.notes[0]


def test_one_replica_gathers_nothing() -> None:
    tiny = Shape("t", n_layers=4, d_model=256, n_heads=4, n_kv_heads=4, head_dim=64, d_ff=512, vocab_size=1000)
    alone = estimate(tiny, Job(128, 8), A100, STACK, Layouts.of(pp=2))
    g = gathers(alone)
    assert g.fsdp_step == g.gather_once == 0
    held = memory(tiny, alone.job, replace(alone.layout, zero=np.array([3])), STACK)
    assert g.saved == pytest.approx(float((alone.memory.total - held.total)[0]))
