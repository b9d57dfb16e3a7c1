"""What tells of the engine: health that cannot lie, metrics, the live view, the page's headers."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moesaic.serve import engine as engine_module
from moesaic.serve.api.totals import Price, Totals
from moesaic.serve.record import StepRecord, Usage
from serving import NAME, Serving, serving, until

TEXT: dict[str, Any] = {"model": NAME, "prompt": "hello there", "max_tokens": 10, "temperature": 0}


def test_a_stalled_step_turns_health_to_503_and_dumps_the_scheduler(
    server: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "STALL_S", 0.3)
    monkeypatch.setattr(engine_module, "STALL_RATIO", 0.0)
    with server.client() as client:
        time.sleep(0.4)
        found = client.get("/health")
        assert (found.status_code, found.json()["status"]) == (200, "ok")  # idle is not stalled
        server.steps.hold()
        with client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as stream:
            assert stream.status_code == 200
            until(lambda: client.get("/health").status_code == 503, "health notices")
            found = client.get("/health").json()
            assert found["status"] == "stalled"
            assert found["alive"]
            assert not found["progressing"]
            assert "no step for" in found["reason"]
            dumps = [r for r in caplog.records if "state of the scheduler" in r.getMessage()]
            assert len(dumps) == 1  # not with every question
            state = json.loads(dumps[0].getMessage().split("state of the scheduler: ")[1])
            assert len(state["requests"]) == 1
            assert dumps[0].levelno == logging.ERROR
            server.steps.release()
            until(lambda: client.get("/health").status_code == 200, "health notices that it goes on")
            assert "[DONE]" in stream.read().decode()


def test_an_engine_that_does_not_tell_its_state_is_not_well(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.serve.api.health.PATIENCE_S", 0.2)
    with server.client() as client:
        with server.engine._work:
            assert client.get("/health").status_code == 503
            assert client.get("/ready").status_code == 503
        until(lambda: client.get("/health").status_code == 200, "health recovers")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_failed_is_dead_and_its_requests_are_told(served_model: Path) -> None:
    server = Serving(engine_module.Engine(engine_module.LocalModel(served_model)))
    try:
        with server.client() as client:
            server.engine.runner.run = None  # type: ignore[assignment,method-assign]
            reply = client.post("/v1/completions", json=TEXT)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "aborted")
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "dead")
            assert "TypeError" in health.json()["reason"]
            reply = client.post("/v1/completions", json=TEXT)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_down")
    finally:
        server.end()


def metrics(server: Serving) -> dict[str, float]:
    """Value of each sample, by its name and labels."""
    with server.client() as client:
        text = client.get("/metrics").text
    return {
        s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_count_what_was_done(served_model: Path) -> None:
    with serving(served_model, price=Price(3.6)) as server, server.client() as client:
        prompt = [5] * 40
        for _ in range(2):
            reply = client.post("/v1/completions", json=TEXT | {"prompt": prompt, "ignore_eos": True}).json()
        assert client.post("/v1/completions", json=TEXT | {"top_p": 5}).status_code == 400
        found = metrics(server)
        assert found["moesaic_generated_tokens_total"] == 20
        assert found["moesaic_prompt_tokens_total"] == 80
        assert found["moesaic_cached_prompt_tokens_total"] == 32
        assert found["moesaic_prompt_positions_total"] == 48
        assert found["moesaic_requests_total finish=length"] == 2
        assert found["moesaic_refused_requests_total status=400"] == 1
        for histogram in ("time_to_first_token_seconds", "queue_seconds", "request_seconds"):
            assert found[f"moesaic_{histogram}_count"] == 2
        assert found["moesaic_inter_token_seconds_count"] == 18
        assert found["moesaic_step_seconds_count"] == found["moesaic_steps_total"] == 20
        assert found["moesaic_step_predicted_seconds_count"] == 19
        experts = {k: v for k, v in found.items() if k.startswith("moesaic_expert_positions_total")}
        assert len(experts) == 2 * 4
        assert sum(experts.values()) == 2 * 2 * (48 + 18)  # layers x experts of a token x positions
        assert found["moesaic_kv_blocks_used"] == found["moesaic_running_requests"] == 0
        assert found["moesaic_progressing"] == 1
        spent = sum(v for k, v in found.items() if k.startswith("moesaic_cost_total"))
        assert spent == pytest.approx(0.001 * found["moesaic_busy_seconds_total"])
        assert 0 < reply["usage"]["moesaic"]["cost"] < spent
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 32


def test_the_live_view_is_told_each_step_once(served_model: Path) -> None:
    with serving(served_model, price=Price(2.0)) as server, server.client() as client:
        empty = client.get("/live").json()
        assert (empty["steps"], empty["cost_per_1k"]) == ([], None)
        client.post("/v1/completions", json=TEXT | {"ignore_eos": True})
        found = client.get("/live?since=0").json()
        keys = {"model", "cap_s", "price_per_hour", "cost_per_1k", "batches", "steps", "totals"}
        assert set(found) == keys
        assert found["model"]["name"] == NAME
        assert found["price_per_hour"] == 2.0
        assert set(found["cost_per_1k"]) == {"prompt", "generated", "waste", "wall"}
        assert [step["number"] for step in found["steps"]] == list(range(1, 11))
        assert set(found["steps"][0]) == set(StepRecord.__dataclass_fields__)
        assert found["totals"]["generated_tokens"] == 10
        assert found["totals"]["requests"] == 1
        assert found["batches"][-1][0] == server.engine.scheduler.room
        assert [step["number"] for step in client.get("/live?since=7").json()["steps"]] == [8, 9, 10]


def test_the_page_keeps_to_itself(server: Serving) -> None:
    with server.client() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert client.get("/../../pyproject.toml").status_code == 404
        assert client.get("/%2e%2e/engine.py").status_code == 404


def record(seconds: float, prompt: int, batch: int, drafted: int = 0, accepted: int = 0) -> StepRecord:
    new = batch + accepted
    return StepRecord(1, 0.0, seconds, None, prompt, batch, new, 1, 0, 1, drafted, accepted, 0.0, 0)


def test_the_time_of_a_step_is_shared_among_its_positions() -> None:
    totals = Totals(Price(3600.0))  # one a second
    totals.step(record(2.0, prompt=6, batch=2))
    mark = totals.mark()
    totals.step(record(3.0, prompt=0, batch=2, drafted=4, accepted=1))
    assert (totals.prompt_s, totals.answer_s, totals.waste_s) == (1.5, 3.5, 1.5)
    per_1k = totals.per_1k()
    assert per_1k is not None
    assert per_1k["prompt"] == pytest.approx(1000 * 1.5 / 6)
    assert per_1k["generated"] == pytest.approx(1000 * 3.5 / 5)
    assert per_1k["waste"] == pytest.approx(1000 * 1.5 / 5)
    # Two answers that had all of the second step between them pay for all of it.
    usage = Usage(prompt_tokens=0, completion_tokens=3, drafted=4, accepted=1)
    assert totals.cost(usage, mark) == pytest.approx(3.0)
    assert Totals().cost(usage, mark) is None
