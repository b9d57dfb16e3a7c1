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

import httpx2
import torch

import tiny
from moesaic.data import Tokenizer, train_tokenizer
from moesaic.interop import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model

WAIT_S = 300  # for what must happen; only a failure takes so long
TEXT = """- Each token visits **two** experts of `four`, chosen by their router (see w_out); the rest stay idle.
"""
VOCABULARY = 480
SURE = 6.0  # logit of the next token of the text; of others it is about N(0, 1), so that temperature 1 wanders


def model_folder(home: Path) -> Path:
    """A model that recites `TEXT` for ever at temperature 0, so that answers can be read, cut and guessed.

    Each token of the text is in it once. What attention and experts add is zero, so the last state is the token's
    embedding, and the row of the head that fits it best is the next token's.
    """
    tokenizer = train_tokenizer(["user\nassistant\nsystem\n" + TEXT] * 8, VOCABULARY)
    tokenizer.save(home / "tokenizer")
    config = tiny.MODEL | {"vocab_size": VOCABULARY, "context": 2048, "tie_embeddings": False}
    model = Transformer(Model.model_validate(config))
    initialise(model, seed=0)
    ids = list(Tokenizer.load(home / "tokenizer").encode(TEXT))
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.wo", "experts.w_out")):
                weight.zero_()
        states_VD = torch.nn.functional.normalize(model.embedding, dim=-1)
        model.embedding.copy_(states_VD)
        scale, generator = model.config.d_model**-0.5, torch.Generator().manual_seed(0)
        model.head.copy_(scale * torch.randn(model.head.shape, generator=generator))
        for token, following in zip(ids, ids[1:] + ids[:1], strict=True):
            model.head[following] = SURE * scale * states_VD[token]
    save_model(model, home / "page-model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "page-model"


class Server:
    """Where a server answers."""

    def __init__(self, address: str, model: str, process: "subprocess.Popen[bytes]", key: str | None = None) -> None:
        self.address, self.model, self.process = address, model, process
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=address, headers=headers, timeout=WAIT_S)

    def post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
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
        found = Server(f"http://127.0.0.1:{port}", folder.name, process, key)
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
            if httpx2.get(address + "/health").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
