"""The engine timed without a server, and a start timed stage by stage."""

import pytest

from moesaic.errors import ServeError
from moesaic.serve.engine import Engine
from moesaic.serve.local import LocalModel
from moesaic.serve.offline import describe, measure_latency, run_batch
from moesaic.serve.settings import EngineSettings
from moesaic.serve.startup import STAGES, measure_startup
from moesaic.serve.startup import describe as describe_startup


def test_a_batch_is_timed_to_its_full_length(local: LocalModel) -> None:
    with Engine(local, EngineSettings(kernels="torch")) as engine:
        found = run_batch(engine, [[5, 6, 7], [8]], 4)
    assert [(t.prompt_tokens, t.output_tokens, len(t.pieces), t.error) for t in found] == [
        (3, 4, 4, None),
        (1, 4, 4, None),
    ]
    for timing in found:
        assert timing.sent < timing.pieces[0] < timing.pieces[-1] == timing.ended


def test_only_counted_rounds_count(local: LocalModel) -> None:
    told: list[tuple[int, int]] = []
    with Engine(local, EngineSettings(kernels="torch")) as engine:
        row = measure_latency(
            engine, batch=2, input_len=6, output_len=3, warmup=1, rounds=2, progress=lambda a, b: told.append((a, b))
        )
        steps = engine.records()
    assert sum(r.new_tokens for r in steps) == 3 * 2 * 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert row["output_throughput"] == pytest.approx(6 / row["batch_s"]["mean"])
    assert row["ttft_ms"]["p50"] <= row["e2el_ms"]["p50"] <= row["e2el_ms"]["p99"]
    assert "latencies in milliseconds" in describe([row])


def test_a_request_that_never_fits_is_an_error(local: LocalModel) -> None:
    with Engine(local, EngineSettings(kernels="torch")) as engine, pytest.raises(ServeError):
        run_batch(engine, [[5] * 500], 1)


def test_a_start_is_a_new_process_with_every_stage(local: LocalModel) -> None:
    found = measure_startup(local.folder, 1, cold=False)
    assert list(found["median_s"]) == list(STAGES)
    assert all(seconds >= 0 for seconds in found["median_s"].values())
    assert found["total_s"]["median"] == pytest.approx(sum(found["median_s"].values()))
    assert "first token" in describe_startup([found])


def test_a_start_that_fails_says_why(local: LocalModel) -> None:
    (local.folder.parent / "empty").mkdir(exist_ok=True)
    with pytest.raises(ServeError, match=r"did not start: .*no model in"):
        measure_startup(local.folder.parent / "empty", 1, cold=False)
