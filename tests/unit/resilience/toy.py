"""A run of a few hundred weights on several gloo ranks, with everything that a supervisor sees of a real one."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from moesaic.errors import RecipeError
from moesaic.recipe import Stage
from moesaic.resilience.faults import Fault, FaultInjector
from moesaic.resilience.outcome import Outcome
from moesaic.resilience.rank import Rank
from moesaic.train.checkpoint import CheckpointStore
from moesaic.train.metrics import MetricsLog
from moesaic.train.stop import StopRequest

EVERY = 3  # steps between checkpoints


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.embedding = nn.Parameter(torch.zeros(64, 1024))  # more than fits a file of the full disk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x + 0.0 * self.embedding.sum()


def train(rank: Rank, steps: int, faults: tuple[Fault, ...] = (), pause: float = 0.0, trouble: str = "") -> Outcome:
    """Data-parallel training of `Net`; step n reads batch n, so that the curve depends on nothing else."""
    if trouble == "refused":
        raise RecipeError("this recipe is wrong; change it")
    if trouble == "no rendezvous" and rank.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.init_process_group("gloo")
    try:
        return _train(rank, steps, faults, pause, trouble)
    finally:
        dist.destroy_process_group()


def _train(rank: Rank, steps: int, faults: tuple[Fault, ...], pause: float, trouble: str) -> Outcome:
    run, number, world = rank.start.run, rank.number, rank.start.world
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    observer = rank.observer(FaultInjector(faults, run, number))
    store = CheckpointStore(
        run / "checkpoints",
        keep=2,
        retries=0,
        warn=lambda line: None,
        on_phase=lambda step, phase: observer.saving(step, phase),
    )
    done = 0
    if (good := store.newest_good()) is not None:
        done = store.load(good, _state(net, optimizer))["step"]
    log = MetricsLog(run / "metrics.jsonl")
    if number == 0:
        log.truncate_after(done)
    stage = Stage.model_validate({"name": "s", "sources": ["x"], "tokens": 100, "seq_len": 8, "batch": [{"tokens": 8}]})
    observer.stage_ready(stage, [net], optimizer)
    with StopRequest() as stop:
        while done < steps:
            asked = torch.tensor([float(stop.requested)])
            dist.all_reduce(asked)
            if asked.item():
                store.save(done, _state(net, optimizer), {"step": done}, background=False)
                return Outcome("stopped")
            step = done + 1
            began = time.perf_counter()
            observer.step_begins(step)
            if pause:
                time.sleep(pause)
            if trouble == "bug" and step == 5 and number == 1:
                raise ValueError("a bug that comes back")
            data = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
            loss = net(data[number::world]).square().sum()
            loss.backward()
            observer.gradients_ready(step)
            for p in net.parameters():
                assert p.grad is not None
                dist.all_reduce(p.grad)
            norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]).item()
            if torch.isfinite(torch.tensor(norm)):
                optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            done = step
            line = {"step": step, "loss": total.item(), "grad_norm": norm, "seconds": time.perf_counter() - began}
            if number == 0:
                log.write(line)
            observer.step_ends(line)
            if done % EVERY == 0 and done < steps:
                store.save(done, _state(net, optimizer), {"step": done}, background=False)
            if trouble == "grow" and done == EVERY and world == 1:
                return Outcome("again", world=2)
    return Outcome("finished", run)


def _state(net: Net, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and moments, sharing memory; AdamW makes its moments at the first step."""
    moments = {}
    for name, p in net.named_parameters():
        if not optimizer.state[p]:
            optimizer.state[p] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        moments[name] = dict(optimizer.state[p])
    return {"model": {n: p.detach() for n, p in net.named_parameters()}, "optimizer": moments}


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of each line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines]
