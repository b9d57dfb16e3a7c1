"""A server for tests: a real engine over a tiny random model, uvicorn in a thread, steps that can be held."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch

from moesaic.data import train_tokenizer
from moesaic.interop import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model
from moesaic.serve.api.app import BODY_LIMIT, make_app, make_service
from moesaic.serve.api.guard import Guard
from moesaic.serve.api.server import Server, take_port
from moesaic.serve.api.totals import Price
from moesaic.serve.engine import Engine, EngineSettings
from moesaic.serve.local import LocalModel
from moesaic.serve.step_plan import StepPlan, StepResult

NAME = "tiny"
CONTEXT = 256
WAIT_S = 60.0  # for what must happen; only a failure takes so long


def make_model(home: Path) -> Path:
    """A folder with a model whose answers go on until something ends them."""
    tokenizer = train_tokenizer(["user\nassistant\nsystem\nhello there, how are you?"] * 5, 300)
    tokenizer.save(home / "tokenizer")
    config = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16, "d_ff": 32}
    model = Transformer(Model.model_validate(config | {"n_experts": 4, "context": CONTEXT, "init_std": 0.3}))
    initialise(model, seed=0)
    save_model(model, home / "model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "model"


def until(fact: Callable[[], bool], what: str) -> None:
    """Wait for something that must come true."""
    end = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < end, f"did not happen: {what}"
        time.sleep(0.005)


class Steps:
    """A hook on an engine's runner: steps run freely, or only as many as are allowed."""

    def __init__(self, engine: Engine) -> None:
        self._run, self._allowed = engine.runner.run, threading.Semaphore(0)
        self._free = threading.Event()
        self._free.set()
        self.waiting = threading.Event()
        """Set while a step is held."""
        engine.runner.run = self._step  # type: ignore[method-assign]

    def _step(self, plan: StepPlan) -> StepResult:
        while not self._free.is_set() and not self._allowed.acquire(timeout=0.01):
            self.waiting.set()
        self.waiting.clear()
        return self._run(plan)

    def hold(self) -> None:
        """From now on no step runs."""
        self._free.clear()

    def allow(self, count: int) -> None:
        """So many may run, and have run when this returns."""
        for _ in range(count):
            self.waiting.wait(WAIT_S)
            self.waiting.clear()
            self._allowed.release()

    def release(self) -> None:
        """All may run again."""
        self._free.set()


class Serving:
    """A running server."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self.engine, self.steps = engine, Steps(engine)
        engine.start()
        self.service = make_service(engine, NAME, **settings)
        self.app = make_app(self.service)
        self._socket = take_port("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        ready = threading.Event()
        self.server = Server(self.app, self.service, drain_s=5, ready=ready.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]})
        self.thread.start()
        assert ready.wait(WAIT_S)

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client without retries."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.address, headers=headers, timeout=WAIT_S)

    def idle(self) -> bool:
        """Whether nothing is left of any request, in the engine or in the server."""
        self.engine.scheduler.check()
        health, pool = self.engine.health(), self.engine.scheduler.pool
        empty = health.running == health.waiting == 0 and pool.free == pool.size
        return empty and not self.engine._answers and not self.engine.runner._rows and not self.service.active

    def end(self) -> None:
        """Stop the server, then the engine."""
        self.steps.release()
        self.server.should_exit = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.engine.close()


@contextmanager
def serving(
    folder: Path,
    settings: EngineSettings | None = None,
    guard: Guard | None = None,
    price: Price | None = None,
    body_limit: int = BODY_LIMIT,
) -> Iterator[Serving]:
    """A server over the model in `folder`; nothing of a request may be left in it when the block ends."""
    server = Serving(Engine(LocalModel(folder), settings), guard=guard, price=price, body_limit=body_limit)
    try:
        yield server
        server.steps.release()
        until(server.idle, "an empty engine at the end")
    finally:
        server.end()
