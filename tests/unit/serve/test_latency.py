"""Metrics of a client from recorded times, with the numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ServeError
from moesaic.serve.latency import (
    Timing,
    concurrency,
    describe,
    meets,
    parse_objectives,
    percentile,
    samples,
    summary,
)

# Sent at 10 s, pieces after 0.5, 0.6 and 0.8 s, the end after 0.9 s; the second piece has two tokens.
SLOW = Timing(sent=10.0, pieces=(10.5, 10.6, 10.8), ended=10.9, prompt_tokens=7, output_tokens=4)
SINGLE = Timing(sent=10.1, pieces=(10.2,), ended=10.2, prompt_tokens=3, output_tokens=1)
FAILED = Timing(sent=10.0, ended=10.3, error="status 429: later")


def test_times_of_one_request() -> None:
    assert SLOW.ttft == pytest.approx(0.5)
    assert SLOW.tpot == pytest.approx(0.3 / 3)
    assert SLOW.itl == pytest.approx((0.1, 0.2))
    assert SLOW.e2el == pytest.approx(0.9)


def test_a_single_token_has_no_time_per_further_token() -> None:
    assert SINGLE.tpot is None
    assert SINGLE.itl == ()
    assert samples([SINGLE, SLOW], "tpot") == pytest.approx([100.0])


def test_rates_and_latencies_leave_failures_out() -> None:
    found = summary([SLOW, SINGLE, FAILED], seconds=2.0, percentiles=(50, 99))
    assert (found["completed"], found["failed"]) == (2, 1)
    assert found["output_throughput"] == pytest.approx(5 / 2)
    assert found["total_throughput"] == pytest.approx(15 / 2)
    assert found["request_throughput"] == pytest.approx(1.0)
    assert found["ttft_ms"] == {
        "mean": pytest.approx(300.0),
        "p50": pytest.approx(300.0),
        "p99": pytest.approx(496.0),
    }
    assert found["itl_ms"]["p50"] == pytest.approx(150.0)
    assert found["first_error"] == "status 429: later"


def test_goodput_counts_requests_that_meet_every_objective() -> None:
    timings = [SLOW, SINGLE, FAILED]
    assert summary(timings, 2.0, objectives={"ttft": 500.1, "tpot": 100.1})["goodput"] == pytest.approx(1.0)
    assert summary(timings, 2.0, objectives={"ttft": 500.1, "tpot": 99.9})["goodput"] == pytest.approx(0.5)
    assert summary(timings, 2.0, objectives={"e2el": 99.0})["goodput"] == 0.0
    assert not meets(FAILED, {"e2el": 1e9})
    assert "goodput" not in summary(timings, 2.0)


def test_when_everything_fails_there_are_no_latencies() -> None:
    found = summary([FAILED], 1.0)
    assert found["ttft_ms"] == {}
    assert "first failure: status 429" in describe(found, ["ttft", "tpot"])


def test_concurrency_is_the_most_at_once() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]  # the third begins when the first ends
    assert concurrency([Timing(sent=a, ended=b) for a, b in spans]) == 2
    assert concurrency([]) == 0


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_objectives_are_read() -> None:
    assert parse_objectives(["ttft:500", "tpot:50.5"]) == {"ttft": 500.0, "tpot": 50.5}


@pytest.mark.parametrize("word", ["ttft", "ttft:", "itl:5", "ttft:-1", "ttft:nan", "tpot:inf", "x:1"])
def test_other_objectives_are_refused(word: str) -> None:
    with pytest.raises(ServeError, match=f"--goodput {word}"):
        parse_objectives([word])


def test_the_table_shows_what_was_asked_for() -> None:
    text = describe(summary([SLOW], 1.0, (50,), {"ttft": 600}), ["ttft", "itl"])
    assert "time to first token" in text
    assert "end to end" not in text
    assert "goodput 1.00" in text
    assert not math.isnan(SLOW.e2el)
