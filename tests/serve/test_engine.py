"""The engine on small real models: answers are the same however requests are batched, cut, cached and guessed."""

import queue
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import GREEDY, LIMIT_S, answers, engine
from moesaic.data import train_tokenizer
from moesaic.errors import ModelError, OverloadedError, ServeError
from moesaic.interop import save_model
from moesaic.model import SamplingSettings, Transformer, generate_tokens, initialise
from moesaic.recipe import Model
from moesaic.serve.engine import Delivery, Engine, EngineSettings
from moesaic.serve.local import LocalModel
from moesaic.serve.options import Options

CONTEXT = 160
CONFIG = {
    "vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32,
    "n_experts": 4, "context": CONTEXT, "init_std": 0.3,
}  # fmt: skip
BLOCK_BYTES = 2 * 2 * 16 * 16 * 4  # keys and values of 16 positions, 2 layers, in fp32


def folder(home: Path, seed: int, **changes: Any) -> Path:
    tokenizer = train_tokenizer(["user\nassistant\nsystem\nhello there, how are you?"] * 5, 300)
    tokenizer.save(home / "tokenizer")
    built = Transformer(Model.model_validate(CONFIG | changes))
    initialise(built, seed)
    save_model(built, home / "model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "model"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("large"), seed=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of the large one: it guesses right now and then."""
    return folder(tmp_path_factory.mktemp("small"), seed=0, n_layers=1, init_std=0.3)


def prompts(count: int = 12, longest: int = 60) -> list[list[int]]:
    """The second half repeat the beginnings of the first, so that there is something to share."""
    draw = random.Random(0)
    made = [[draw.randrange(3, 300) for _ in range(draw.randint(1, longest))] for _ in range(count // 2)]
    return made + [p[: len(p) * 3 // 4] + [draw.randrange(3, 300) for _ in range(9)] for p in made]


PROMPTS = prompts()


def reference(path: Path, asked: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token by token over a contiguous cache, one request after the other."""
    of = LocalModel(path, dtype=torch.float32).model
    settings = SamplingSettings(temperature=0, max_tokens=GREEDY.max_tokens)
    return [[s.token for s in generate_tokens(of, p, settings)] for p in asked]


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "pieces of 7": {"max_positions": 7},
    "two at a time": {"max_running": 2},
    "no prefix cache": {"prefix_cache": False},
    "little memory": {"kv_memory": 14 * BLOCK_BYTES},
    "guesses from the text": {"draft": "lookup", "draft_length": 3},
    "guesses of a small model": {"draft": "small"},
    "guesses of the model itself": {"draft": "large", "draft_length": 5},
    "guesses, pieces and little memory": {"draft": "small", "max_positions": 20, "kv_memory": 14 * BLOCK_BYTES},
}


@pytest.fixture(scope="module")
def expected(large: Path) -> list[list[int]]:
    found = reference(large, PROMPTS)
    assert len({tuple(f) for f in found}) == len(found)
    assert all(len(set(f)) > 3 for f in found)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_greedy_answers_are_those_of_the_reference(
    way: str, kernels: str, large: Path, small: Path, expected: list[list[int]]
) -> None:
    """Twice, so that the second time finds a full prefix cache."""
    settings = dict(WAYS[way])
    settings["draft"] = {"small": small, "large": large}.get(settings.get("draft", ""), settings.get("draft"))
    with engine(large, kernels=kernels, batch_invariant=True, **settings) as made:
        assert answers(made, PROMPTS) == expected
        assert answers(made, PROMPTS) == expected
        if "little memory" in way:
            assert made.scheduler.preemptions > 0
        if way == "as it comes":
            assert made.scheduler.reused_tokens > 100
        drafted, accepted = (sum(getattr(r, n) for r in made.records()) for n in ("drafted", "accepted"))
        assert (drafted > 0) == (settings.get("draft") is not None)
        if "itself" in way:
            assert accepted == drafted


def numbers(made: Engine, asked: Sequence[Sequence[int]]) -> list[list[tuple[int, float | None]]]:
    """Every token of every answer with its log probability."""
    box: queue.Queue[Delivery] = queue.Queue()
    wanted = Options(temperature=0, max_tokens=16, logprobs=0)
    order = [made.submit(p, wanted, box.put) for p in asked]
    found: dict[int, list[tuple[int, float | None]]] = {n: [] for n in order}
    left = set(order)
    while left:
        delivery = box.get(timeout=LIMIT_S)
        found[delivery.request] += zip(delivery.tokens, (n.logprob for n in delivery.notes), strict=True)
        left -= {delivery.request} if delivery.finish else set()
    return [found[n] for n in order]


def one_by_one(path: Path, dtype: torch.dtype, **settings: Any) -> list[list[tuple[int, float | None]]]:
    with engine(path, dtype, prefix_cache=False, max_running=1, **settings) as made:
        return numbers(made, PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_batch_invariant_to_the_bit(kernels: str, dtype: torch.dtype, large: Path, small: Path) -> None:
    """Log probabilities are the same bits alone and in every way of serving many."""
    alone = one_by_one(large, dtype, kernels=kernels, batch_invariant=True)
    for way in ("as it comes", "pieces of 7", "guesses, pieces and little memory"):
        settings = WAYS[way] | ({"draft": small} if "draft" in WAYS[way] else {})
        with engine(large, dtype, kernels=kernels, batch_invariant=True, **settings) as made:
            assert numbers(made, PROMPTS) == alone
            assert numbers(made, PROMPTS) == alone


def test_without_the_mode_bits_differ(large: Path) -> None:
    """Else the test above would show nothing."""
    with engine(large, kernels="torch") as made:
        assert numbers(made, PROMPTS) != one_by_one(large, torch.float32, kernels="torch")


def test_seeds_repeat_whoever_is_beside(large: Path) -> None:
    """A request with a seed draws the same answer alone and among others with other options."""
    mine = Options(temperature=0.9, top_p=0.95, seed=7, max_tokens=20)
    with engine(large) as made:
        alone = answers(made, [PROMPTS[0]], mine)[0]
        box: queue.Queue[Delivery] = queue.Queue()
        for n, p in enumerate(PROMPTS[1:]):
            made.submit(p, Options(temperature=1.0, seed=n, max_tokens=30, presence_penalty=0.5), box.put)
        assert answers(made, [PROMPTS[0]], mine, alone=False)[0] == alone
        assert (
            answers(made, [PROMPTS[0]], Options(temperature=0.9, top_p=0.95, seed=8, max_tokens=20), False)[0] != alone
        )


def test_a_storm_of_cancels_leaks_nothing(large: Path, small: Path) -> None:
    """Ten thousand requests given up in every state, some twice; every sink hears exactly one end."""
    draw = random.Random(1)
    ends: dict[int, int] = {}
    lock = threading.Lock()

    def sink(delivery: Delivery) -> None:
        if delivery.finish is not None:
            with lock:
                ends[delivery.request] = ends.get(delivery.request, 0) + 1

    before = threading.active_count()
    with engine(large, draft=small, kv_memory=40 * BLOCK_BYTES, max_waiting=300) as made:
        threads = threading.active_count()
        asked: list[int] = []
        while len(asked) < 10_000:
            try:
                asked.append(made.submit(draw.choice(PROMPTS), Options(max_tokens=50, seed=1), sink))
            except OverloadedError:
                made.cancel(draw.choice(asked))
            for _ in range(draw.randint(0, 2)):
                made.cancel(asked[-draw.randint(1, min(len(asked), 250))])
        for number in asked:
            made.cancel(number)
        assert made.drain(LIMIT_S)
        assert len(ends) == 10_000
        assert set(ends.values()) == {1}
        made.scheduler.check()
        assert made.scheduler.pool.free == made.scheduler.pool.size
        assert not made.runner._rows
        assert not made.runner._tokens
        assert not made.runner.draft._done  # type: ignore[union-attr]
        assert threading.active_count() == threads
    assert threading.active_count() == before


def test_what_cannot_be_answered(large: Path) -> None:
    with engine(large, max_waiting=2) as made:
        for prompt, said in (([], "prompt"), ([300], "vocabulary"), ([-1], "vocabulary"), ([5] * CONTEXT, "shorten")):
            with pytest.raises(ServeError, match=said):
                made.submit(prompt, GREEDY, print)
        with pytest.raises(ServeError, match="logit_bias"):
            made.submit([5], Options(logit_bias={300: 1.0}), print)
        assert made.drain(1)
        with pytest.raises(OverloadedError, match="draining"):
            made.submit([5], GREEDY, print)
    with pytest.raises(ServeError, match="do not hold a block"):
        Engine(LocalModel(large), EngineSettings(kv_memory=100))


def test_a_draft_with_another_tokenizer_is_refused(large: Path, tmp_path: Path) -> None:
    other = folder(tmp_path, seed=0, vocab_size=310)
    train_tokenizer(["something else entirely"] * 9, 290).save(other)
    with pytest.raises(ModelError, match="another tokenizer"):
        Engine(LocalModel(large), EngineSettings(draft=other))


def test_a_failing_step_ends_every_answer_and_shows(large: Path) -> None:
    """Nobody waits for an engine that is gone."""
    box: queue.Queue[Delivery] = queue.Queue()
    with engine(large) as made:

        def broken(plan: object) -> Any:
            raise RuntimeError("out of order")

        made.runner.run = broken  # type: ignore[method-assign]
        number = made.submit(PROMPTS[0], GREEDY, box.put)
        last = box.get(timeout=LIMIT_S)
        assert (last.request, last.finish) == (number, "abort")
        health = made.health()
        assert not health.alive
        assert "out of order" in health.reason
        with pytest.raises(OverloadedError, match="out of order"):
            made.submit(PROMPTS[0], GREEDY, box.put)
