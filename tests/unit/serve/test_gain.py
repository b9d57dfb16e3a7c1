"""Draft lengths by measured gain: found where drafting pays, off where it does not, and cheap to find out."""

import random

import pytest

from moesaic.serve.gain import Gain


class Machine:
    """Time by a formula: a step takes 1 s, each guess a share of it more; guesses are right at random."""

    def __init__(self, right: float, cost: float, *, noise: float = 0.0, seed: int = 0) -> None:
        self.right, self.cost, self.noise = right, cost, noise
        self._random = random.Random(seed)

    def step(self, batch: int, length: int) -> tuple[float, float]:
        """New tokens of a row, and seconds."""
        tokens = batch
        for _ in range(batch):
            for _ in range(length):
                if self._random.random() >= self.right:
                    break
                tokens += 1
        return tokens / batch, (1 + self.cost * length) * (1 + self.noise * self._random.uniform(-1, 1))

    def best_rate(self, lengths: tuple[int, ...]) -> float:
        """Tokens a second and row at the best length."""
        return max(sum(self.right**k for k in range(n + 1)) / (1 + self.cost * n) for n in lengths)


def run(gain: Gain, machine: Machine, batch: int, steps: int) -> tuple[float, list[int]]:
    """Tokens a second and row, no drafts being 1; and the lengths used."""
    tokens = seconds = 0.0
    lengths = []
    for _ in range(steps):
        lengths.append(gain.length(batch))
        new, took = machine.step(batch, lengths[-1])
        gain.learn(batch, lengths[-1], new, took)
        tokens, seconds = tokens + new, seconds + took
    return tokens / seconds, lengths


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("right", "cost"), [(0.0, 0.25), (0.0, 1.0), (0.3, 0.4), (0.8, 0.9)])
def test_drafting_that_does_not_pay_costs_at_most_two_per_cent(right: float, cost: float, noise: float) -> None:
    rate, lengths = run(Gain(8), Machine(right, cost, noise=noise), 32, 1000)
    assert rate > 0.98
    assert lengths.count(0) > 950


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("right", "cost"), [(0.8, 0.05), (0.6, 0.2), (0.9, 0.3), (0.95, 0.02)])
@pytest.mark.parametrize("batch", [1, 8])
def test_drafting_that_pays_comes_near_the_best_length(batch: int, right: float, cost: float, noise: float) -> None:
    rates = [run(Gain(8), Machine(right, cost, noise=noise, seed=seed), batch, 1000)[0] for seed in range(5)]
    assert sum(rates) / 5 > 0.9 * Machine(right, cost).best_rate((0, 1, 2, 4, 8))  # chance is great at batch 1


def test_each_batch_size_has_its_own_length() -> None:
    gain = Gain(4)
    cheap, dear = Machine(0.8, 0.05), Machine(0.8, 1.0)
    for _ in range(40):
        run(gain, cheap, 2, 10)
        run(gain, dear, 64, 10)
    assert run(gain, cheap, 2, 100)[1].count(4) > 80
    assert run(gain, dear, 64, 100)[1].count(0) > 95
    assert gain.length(40) == gain.length(64)  # one power of two to the next


def test_batch_sizes_share_one_purse() -> None:
    gain, machine = Gain(8), Machine(0.0, 0.5)
    rates = [run(gain, machine, batch, 60)[0] for batch in (64, 32, 16, 8, 4, 2, 1)]
    assert sum(rates) / len(rates) > 0.98


def test_it_follows_when_the_text_changes() -> None:
    gain = Gain(4)
    assert run(gain, Machine(0.9, 0.1), 4, 400)[1][-50:].count(4) > 40
    _, lengths = run(gain, Machine(0.0, 0.5), 4, 400)
    assert lengths[60:].count(0) > 330  # it has noticed after 60 steps
    assert run(gain, Machine(0.9, 0.1), 4, 1500)[1][-50:].count(4) > 40


def test_a_step_that_was_held_up_changes_nothing() -> None:
    gain = Gain(4)
    run(gain, Machine(0.8, 0.05), 1, 300)
    before = gain.length(1)
    gain.learn(1, before, 1.0, 1000.0)
    assert run(gain, Machine(0.8, 0.05), 1, 40)[1].count(before) > 35


def test_the_reason_tells_what_was_measured() -> None:
    gain = Gain(4)
    assert gain.reason(32) == "not measured yet at batch 32"
    run(gain, Machine(0.0, 0.3), 32, 300)
    assert gain.reason(32).startswith("off at batch 32: 1.0 tokens a step take 1.3 x the time with 1 guess")
    run(gain, Machine(1.0, 0.1), 1, 300)
    assert gain.reason(1) == "4 guesses at batch 1: 5.0 tokens a step take 1.4 x the time"


def test_the_same_history_gives_the_same_lengths() -> None:
    first, second = (run(Gain(8), Machine(0.6, 0.2, noise=0.3, seed=5), 4, 500)[1] for _ in range(2))
    assert first == second
    assert set(first) == {0, 1, 2, 4, 8}


def test_asking_changes_nothing() -> None:
    gain = Gain(3)
    for _ in range(30):
        length = gain.length(2)
        assert {gain.length(2) for _ in range(5)} == {length}
        assert length <= 3
        gain.learn(2, length, 1 + length / 2, 1.0)


def test_fewer_guesses_than_asked_for_count_as_what_they_were() -> None:
    gain = Gain(8)
    for _ in range(200):
        gain.learn(1, min(gain.length(1), 3), 1.0 + min(gain.length(1), 3), 1.0)
    assert gain.length(1) in (2, 3, 4)
    assert gain.reason(1).startswith("2 guesses at batch 1: 4.0 tokens")


def test_a_draft_of_length_nought_is_never_asked() -> None:
    gain = Gain(0)
    assert run(gain, Machine(1.0, 0.0), 1, 50)[1] == [0] * 50
