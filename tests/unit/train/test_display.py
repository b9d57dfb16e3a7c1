"""A person sees where the run stands; a log file gets few lines; training waits for neither."""

import io
from typing import Any

import pytest
from rich.console import Console

from moesaic.train import display
from moesaic.train.display import Display, load_bar


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def line(step: int, tokens: int, **more: Any) -> dict[str, Any]:
    known = {"loss": 3.14159, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 1000.0, "peak_share": 0.51}
    return {"step": step, "stage_tokens": tokens, "load": [[0.25, 0.75], [0.5, 0.5]], **known, **more}


def test_a_log_gets_a_line_at_the_first_step_every_ten_seconds_and_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as shown:
        shown.start_stage("pretrain", 100_000)
        for step in range(1, 101):
            shown.step(line(step, 1000 * step))
            clock.now += 0.25
    lines = out.getvalue().splitlines()
    assert lines[0] == "stage pretrain: 100.0k tokens"
    assert [part.split(" · ")[1] for part in lines[1:]] == ["step 1", "step 41", "step 81", "step 100"]
    assert lines[1] == (
        "pretrain 1.0% · step 1 · loss 3.1416 · lr 1.00e-03 · norm 0.50 · 1,000 tokens/s · 51% of peak · 1:39 left"
    )


def test_a_terminal_is_redrawn_at_most_four_times_a_second(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with Display(console) as shown:
        draws = 0

        def count(*_: Any, **__: Any) -> None:
            nonlocal draws
            draws += 1

        shown.start_stage("pretrain", 100_000)
        monkeypatch.setattr(shown._live, "update", count)
        for step in range(1000):
            shown.step(line(step, step))
            clock.now += 0.01
        assert draws == 40


def test_a_terminal_shows_bar_numbers_load_and_time_left(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=160)) as shown:
        shown.start_stage("extend", 100_000, done=40_000)
        with shown.doing("saving a checkpoint"):
            pass
        shown.step(line(7, 50_000, skipped=True))
    text = out.getvalue()
    for told in (
        "extend",
        "40.0k of them done",
        "saving a checkpoint",
        "50.0%",
        "0:50 left",
        "skipped",
        "most 1.50",
    ):
        assert told in text


def test_a_log_hears_of_a_step_once(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as shown:
        shown.start_stage("pretrain", 100)
        shown.step(line(1, 50))
        with shown.doing("saving a checkpoint"):
            pass
        assert len(out.getvalue().splitlines()) == 2


def test_numbers_that_are_not_known_are_left_out(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as shown:
        shown.start_stage("pretrain", 10)
        shown.step({"step": 1, "stage_tokens": 5, "peak_share": None})
    assert out.getvalue().splitlines()[1] == "pretrain 50.0% · step 1"


def test_text_in_brackets_is_printed_as_it_is(clock: Clock) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as shown:
        shown.message("[red] layers[0]")
    assert out.getvalue() == "[red] layers[0]\n"


@pytest.mark.parametrize(("experts", "blocks"), [(2, 2), (16, 16), (64, 64), (128, 64), (100, 50)])
def test_even_load_is_half_a_block_for_any_number_of_experts(experts: int, blocks: int) -> None:
    bar = load_bar([[1 / experts] * experts] * 3)
    assert bar == "▅" * blocks + " least 1.00, most 1.00 of an even share"
