"""`moesaic bench` against servers of our own, as a user calls it."""

import json
from pathlib import Path

import pytest

from moesaic.cli import main
from moesaic.errors import ServeError
from moesaic.serve.own_server import own_server
from serving import NAME, Serving

SMALL = ("--num-prompts", "5", "--random-input-len", "12", "--random-output-len", "7", "--ignore-eos")


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["bench", *words])
    return int(end.value.code or 0), capsys.readouterr().out


def test_load_on_a_server_that_runs(server: Serving, served_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("serve", server.address, *SMALL, "--tokenizer", str(served_model), "--request-rate", "200", "--json")
    status, out = bench(capsys, *words, "--goodput", "ttft:60000", "--goodput", "e2el:60000")
    assert status == 0
    found = json.loads(out)
    assert (found["completed"], found["failed"]) == (5, 0)
    assert (found["prompt_tokens"], found["output_tokens"]) == (5 * 12, 5 * 7)
    assert found["goodput"] == pytest.approx(found["request_throughput"])
    assert 0 < found["ttft_ms"]["p50"] <= found["e2el_ms"]["p99"]


def test_requests_that_fail_are_told_and_exit_with_1(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = bench(capsys, "serve", server.address, *SMALL, "--model", NAME)  # ids 300-999: not in its vocabulary
    assert status == 1
    assert "0 requests answered, 5 failed" in out
    assert "first failure: status 400" in out


def test_a_model_is_served_for_the_while(served_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = bench(capsys, "serve", str(served_model), *SMALL)
    assert status == 0
    assert "5 requests answered, 0 failed" in out
    assert "time to first token" in out


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"the server did not start: .*no model in"), own_server(tmp_path):
        pass


def test_latency_and_startup_report_json(served_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ("--input-len", "8", "--output-len", "4", "--num-iters", "1", "--kernels", "torch", "--json")
    status, out = bench(capsys, "latency", str(served_model), "--batch-size", "1", "--batch-size", "3", *lengths)
    assert status == 0
    assert [row["batch"] for row in json.loads(out)["batches"]] == [1, 3]
    status, out = bench(
        capsys, "startup", str(served_model), "--num-iters-cold", "1", "--num-iters-warm", "0", "--json"
    )
    assert status == 0
    assert [row["cold"] for row in json.loads(out)] == [True]
