"""`moesaic serve` as a process: what it prints, how it ends, and what it says when it cannot begin."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moesaic.cli import main
from serving import WAIT_S, until

TEXT: dict[str, Any] = {"model": "served", "prompt": "hello", "ignore_eos": True}
START = """
import sys, time, torch
torch.set_num_threads(1)
from moesaic.serve.runner import Runner
run, pause = Runner.run, float(sys.argv.pop(1))
def slow(self, plan):
    time.sleep(pause)
    return run(self, plan)
Runner.run = slow
from moesaic.cli import main
main(sys.argv[1:])
"""


class Process:
    """A server of its own, each of whose steps takes `pause` seconds more; 1e9 is one that hangs."""

    def __init__(self, folder: Path, *words: str, pause: float = 0.0) -> None:
        command = [sys.executable, "-c", START, str(pause), "serve", str(folder), "--port", "0", "--name", "served"]
        self.process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.printed = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if found := re.search(r"(http://\S+)/ ", line):
                self.address = found[1]
                return
        raise AssertionError(self.process.communicate()[1])

    def end(self) -> tuple[int, str]:
        """Status and standard error, once it has ended."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.printed += out
        return self.process.returncode, err


@pytest.fixture
def started(served_model: Path) -> Iterator[Any]:
    found: list[Process] = []

    def start(*words: str, pause: float = 0.0) -> Process:
        found.append(Process(served_model, *words, pause=pause))
        return found[-1]

    yield start
    for process in found:
        process.process.kill()
        process.process.communicate()


def test_it_says_what_it_serves_and_traces_it(started: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    words = ("--max-token-latency", "50ms", "--kv-memory", "1MB", "--price", "1.5/h", "--trace", str(trace))
    server = started("--host", "0.0.0.0", *words)
    for title in ("model      served", "kernels    ", "memory     ", "latency    at most 50 ms", "batch      at most"):
        assert title in server.printed
    assert re.search(r"at once: \d+ of 256 tokens \(memory\)$", server.printed, re.MULTILINE)
    assert re.search(r"started    imports .*, weights .*, in all ", server.printed)
    assert httpx2.get(server.address + "/health").status_code == 200
    reply = httpx2.post(server.address + "/v1/completions", json=TEXT | {"max_tokens": 5}).json()
    assert reply["usage"]["moesaic"]["cost"] > 0
    assert httpx2.get(server.address + "/live").json()["cap_s"] == 0.05
    server.process.send_signal(signal.SIGINT)
    status, err = server.end()
    assert status == 0
    assert len(trace.read_text().splitlines()) == 5
    assert len(err.splitlines()) == 1  # other addresses without keys are warned of
    assert "can use this server; give --api-key-file" in err


def test_a_signal_lets_running_answers_end_and_takes_no_new_ones(started: Any) -> None:
    server = started(pause=0.05)
    text: list[str] = []
    status: list[int] = []

    def read() -> None:
        wanted = TEXT | {"max_tokens": 40, "stream": True}
        with httpx2.stream("POST", server.address + "/v1/completions", json=wanted, timeout=WAIT_S) as reply:
            status.append(reply.status_code)
            text.extend(reply.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(text) > 3, "an answer is on its way")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx2.get(server.address + "/ready").status_code == 503, "it drains")
    late = httpx2.post(server.address + "/v1/completions", json=TEXT | {"max_tokens": 5})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
    assert int(late.headers["retry-after"]) > 0
    assert httpx2.get(server.address + "/health").status_code == 503
    reader.join(WAIT_S)
    assert status == [200]
    assert '"finish_reason":"length"' in text[-4]
    assert text[-2] == "data: [DONE]"
    assert server.end() == (0, "")
    assert "draining   answers that are being written: 1; at most 30 s more" in server.printed


def test_what_does_not_end_in_time_is_told_so(started: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one-of-them\n")
    server = started("--drain", "200ms", "--host", "0.0.0.0", "--api-key-file", str(keys), pause=0.05)
    assert httpx2.get(server.address + "/v1/models").status_code == 401
    wanted, key = TEXT | {"max_tokens": 200, "stream": True}, {"Authorization": "Bearer one-of-them"}
    address = server.address + "/v1/completions"
    with httpx2.stream("POST", address, json=wanted, headers=key, timeout=WAIT_S) as reply:
        lines = reply.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert any("gave this answer up" in line for line in rest)
    assert server.end() == (0, "")
    assert "one-of-them" not in server.printed


def test_a_second_signal_ends_at_once_and_a_step_that_hangs_does_not_keep_the_process(started: Any) -> None:
    wanted = TEXT | {"max_tokens": 5, "stream": True}
    for words, signals in ((("--drain", "1h"), 2), (("--drain", "0s"), 1)):
        server = started(*words, pause=1e6)
        with httpx2.stream("POST", server.address + "/v1/completions", json=wanted, timeout=WAIT_S):
            server.process.send_signal(signal.SIGTERM)
            if signals == 2:
                until(lambda at=server.address: httpx2.get(at + "/ready").status_code == 503, "it drains")
                server.process.send_signal(signal.SIGTERM)
            assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-token-latency", "fast"), "--max-token-latency fast: give a time with its unit"),
        (("--kv-memory", "1"), "--kv-memory 1: give a size with its unit"),
        (("--kv-memory", "1kB"), "do not hold a block of keys and values; give at least"),
        (("--price", "much"), "--price much: give what an hour of this machine costs"),
        (("--rate", "5"), "--rate 5: give requests in a time"),
        (("--rate", "0/s"), "--rate 0/s: give requests in a time"),
        (("--drain", "-1s"), "--drain"),
        (("--api-key-file", "nowhere"), "cannot read the keys in nowhere"),
        (("--host", "256.1.1.1"), "--host 256.1.1.1: "),
        (("--host", "192.0.2.1"), "choose another --port (or --host)"),
        (("--trace", "/nowhere/trace"), "cannot write /nowhere/trace"),
        (("--draft", "nowhere"), "no model in nowhere"),
    ],
)
def test_mistakes_are_one_line(
    served_model: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, str(served_model), "--port", "0", *words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["serve", *words])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    return err


def test_a_port_in_use_is_one_line(served_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}: Address already in use; choose another --port" in refused(
            capsys, str(served_model), "--port", port
        )


def test_a_folder_that_is_missing_or_corrupt_is_one_line(
    served_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    assert "no model in /nowhere" in refused(capsys, "/nowhere", "--port", "0")
    for file, content in (("model.safetensors", b"x" * 100), ("tokenizer.json", b"{"), ("config.json", b"{")):
        folder = tmp_path / file
        shutil.copytree(served_model, folder)
        (folder / file).write_bytes(content)
        assert file.partition(".")[0] in refused(capsys, str(folder), "--port", "0")
