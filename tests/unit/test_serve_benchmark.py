"""The serving benchmark's own arithmetic: requests, roofline, judging of answers, acceptance."""

import json

import pytest
import torch
from serve_kit import check, roofline, workload
from serve_kit.engines import ENGINES
from serve_kit.reference import CONFIG, make_tokenizer
from serve_speculation import Run, acceptance, touched

from moesaic.model import Transformer, initialise
from moesaic.recipe import Model
from moesaic.serve.record import StepRecord

SMALL = Model(vocab_size=100, d_model=16, n_layers=2, n_heads=2, head_dim=8, d_ff=32, n_experts=4, top_k=2, context=64)
BYTES_ONLY = roofline.Machine(bandwidth=1.0, peak=float("inf"))
PRODUCTS_ONLY = roofline.Machine(bandwidth=float("inf"), peak=1.0)


def test_the_committed_requests_are_those_of_the_issue() -> None:
    rows = [json.loads(line) for line in workload.FILE.read_text().splitlines()]
    assert len(rows) == workload.COUNT == 64
    assert all(100 <= row["input"] <= 512 and 64 <= row["output"] <= 256 for row in rows)
    asks = workload.many(CONFIG.vocab_size)
    assert [(len(a.prompt), a.output) for a in asks] == [(row["input"], row["output"]) for row in rows]
    assert asks[0].prompt[:4] == [27930, 12883, 25096, 29431]
    assert all(workload.FIRST <= t < CONFIG.vocab_size for a in asks for t in a.prompt)


def test_the_reference_model_has_the_published_size() -> None:
    assert CONFIG.parameters() / 1e9 == pytest.approx(0.34, abs=0.005)
    assert CONFIG.active_parameters / 1e9 == pytest.approx(0.06, abs=0.02)
    tokenizer = make_tokenizer(2_000)
    assert len(tokenizer) == 2_000
    text = "Any text, and bytes: \x00 ü 漢字"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_of_a_step_are_dense_weights_touched_experts_and_contexts() -> None:
    attention, router, expert = 2 * 16 * 8 * (2 + 1), 16 * 4, 3 * 16 * 32
    kept = 2 * 2 * 8  # keys and values, layers, width of the one head
    prompt = 2 * (2 * (attention + router + 4 * (1 - 0.5**3) * expert) + 100 * 16)
    step = 2 * (2 * (attention + router + 2 * expert) + 100 * 16) + 2 * kept * 4
    two = [workload.Ask([1, 2, 3], 2)]
    assert roofline.roofline(SMALL, BYTES_ONLY, two) == pytest.approx(prompt + step)


def test_products_of_a_prompt_are_two_for_each_active_weight() -> None:
    weights = 2 * (2 * 16 * 8 * 3 + 16 * 4 + 2 * 3 * 16 * 32)
    pairs = 2 * 2 * 2 * 8 * (1 + 2 + 3)  # scores and sums, over layers, heads and widths
    one = [workload.Ask([1, 2, 3], 1)]
    assert roofline.roofline(SMALL, PRODUCTS_ONLY, one) == pytest.approx(2 * (3 * weights + 100 * 16 + pairs))


def test_more_answers_at_once_cost_less_each() -> None:
    machine = roofline.Machine(50e9, 800e9)
    asks = workload.many(CONFIG.vocab_size)
    alone = sum(roofline.roofline(CONFIG, machine, [a]) for a in asks[:4])
    assert roofline.roofline(CONFIG, machine, asks[:4]) < alone


@pytest.fixture(scope="module")
def model() -> Transformer:
    found = Transformer(SMALL.model_copy(update={"init_std": 0.3}))
    with torch.inference_mode():
        initialise(found, 0)
    return found.requires_grad_(False)


def test_right_answers_have_no_gaps_and_wrong_ones_do(model: Transformer) -> None:
    prompt, answer = [5, 6, 7], []
    for _ in range(8):
        answer.append(int(model(torch.tensor([prompt + answer]))[0, -1].argmax()))
    right = check.judge(model, [prompt], [answer])
    assert right == {"tokens": 8, "best": 1.0, "beyond_rounding": 0.0, "largest_gap": 0.0}
    worst = [int(model(torch.tensor([prompt]))[0, -1].argmin()), *answer[1:]]
    wrong = check.judge(model, [prompt], [worst])
    assert wrong["best"] < 1.0
    assert wrong["beyond_rounding"] >= 1 / 8
    assert wrong["largest_gap"] > 2.0


@pytest.mark.parametrize("accept", [0.2, 0.5, 0.9])
def test_acceptance_is_found_again(accept: float) -> None:
    """From the mean number of accepted guesses: a (1 - a^K) / (1 - a) of K."""
    batch, length = 4, 3
    stood = 1000 * accept * (1 - accept**length) / (1 - accept) * batch
    records = [_record(length * batch, 0)] * 999 + [_record(length * batch, round(stood))]
    assert acceptance(Run(records, []), batch) == pytest.approx(accept, abs=1e-3)


def test_more_tokens_touch_more_experts_up_to_all() -> None:
    dense = 2 * 2 * 16 * 8 * 3 + 100 * 16
    assert touched(SMALL, 1) == pytest.approx(dense + 2 * 2 * 3 * 16 * 32)
    assert touched(SMALL, 1000) == pytest.approx(dense + 2 * 4 * 3 * 16 * 32)


def test_every_engine_is_tried_with_three_settings_for_each_measurement() -> None:
    for engine in ENGINES:
        assert engine.script.is_file()
        for kind in ("one", "many"):
            assert sum(kind in trial.kinds for trial in engine.trials) >= 3, engine.name


def _record(drafted: int, accepted: int) -> StepRecord:
    return StepRecord(
        number=0, at=0.0, seconds=1.0, predicted_s=None, prompt_positions=0, batch=4, new_tokens=4, running=4,
        waiting=0, blocks_used=0, drafted=drafted, accepted=accepted, shift=0.0, lenient=0,
    )  # fmt: skip
