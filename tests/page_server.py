"""A server of its own process for tests of the page: `moesaic serve` on a model of a few thousand weights."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

import tiny
from moesaic.data import train_tokenizer
from moesaic.interop import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model

WAIT_S = 120
WORDS = "user\nassistant\nsystem\nsomething again, please: hello there, how are you? Tell me of heaps. A long one. "


def model_folder(home: Path) -> Path:
    """A model with random weights, whose answers at temperature 0 do not end before they are cut."""
    tokenizer = train_tokenizer([WORDS] * 5, 400)
    tokenizer.save(home / "tokenizer")
    config = tiny.MODEL | {"vocab_size": 400, "context": 4096, "init_std": 0.3}
    model = Transformer(Model.model_validate(config))
    initialise(model, seed=0)
    save_model(model, home / "page-model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "page-model"


class Server:
    """Where a server answers."""

    def __init__(self, address: str, model: str, key: str | None = None) -> None:
        self.address, self.model = address, model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=address, headers=headers, timeout=WAIT_S)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._client.post(path, json=body)

    def chat(self, text: str, **options: Any) -> None:
        """Asks without the page."""
        messages = [{"role": "user", "content": text}]
        self.post("/v1/chat/completions", {"model": self.model, "messages": messages, **options}).raise_for_status()

    def live(self) -> dict[str, Any]:
        """Everything that the live view is told."""
        found: dict[str, Any] = self._client.get("/live", params={"since": -1}).raise_for_status().json()
        return found

    def wait_until_idle(self) -> None:
        """Until no step is made any more."""
        end = time.monotonic() + WAIT_S
        last = None
        while (now := self.live()["totals"]["steps"]) != last:
            assert time.monotonic() < end, "the engine still works"
            last = now
            time.sleep(0.3)


@contextmanager
def serving(folder: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    """`moesaic serve folder *options` on a free port, until the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from moesaic.cli import main; main()", "serve", str(folder)]
    secret = []
    if key:
        keys = folder.with_name("keys.txt")
        keys.write_text(key + "\n", encoding="utf-8")
        secret = ["--api-key-file", str(keys)]
    log = folder.with_name(f"serve-{port}.log")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), *secret, *options], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    try:
        found = Server(f"http://127.0.0.1:{port}", folder.name, key)
        _wait(found.address, process, log)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the server is ready."""
    end = time.monotonic() + WAIT_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, f"not ready: {log.read_text()}"
        try:
            if httpx.get(address + "/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
