"""What the layouts cost where there is only one process: our training step against a bare loop, in turns.

    python benchmarks/overhead.py [--steps 12] [--layers 8]

Both compute the same: model and micro-batches of benchmarks/train_vs_transformers.py, two of them a step, router
losses, clipping, AdamW, the same kernels. Their losses must agree. The bare loop is what one would write by hand.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from layouts import Side
from machine import describe, keep
from train_vs_transformers import CONFIG, LENGTH, SEQUENCES

from moesaic.data import Batch
from moesaic.model import Transformer, balance_loss, initialise, next_token_loss, z_loss
from moesaic.model.kernels import choose_kernels
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.train.memory import keep_freed_memory

MICRO_BATCHES, WARM = 2, 4
ROWS = MICRO_BATCHES * SEQUENCES
Step = Callable[[Batch], float]


def ours(layers: int) -> Step:
    """The whole path: engine and training step."""
    step = Side.build(Layout(), World(), layers).step
    return lambda batch: step(batch, 1e-4).loss


def bare(layers: int) -> Step:
    """A loop over the same parts."""
    model = Transformer(CONFIG.model_copy(update={"n_layers": layers}), torch.bfloat16)
    model.use_kernels(choose_kernels("auto", torch.device("cpu"))[0])
    initialise(model, 0)
    matrix = [p for n, p in model.named_parameters() if p.ndim >= 2 and n != "embedding"]
    other = [p for n, p in model.named_parameters() if p.ndim < 2 or n == "embedding"]
    groups = [{"params": other, "weight_decay": 0.0}, {"params": matrix, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    config = model.config

    def step(batch: Batch) -> float:
        total = 0.0
        for rows in torch.arange(ROWS).split(SEQUENCES):
            hidden, stats = model.hidden(
                batch.tokens[rows], batch.positions[rows], batch.documents[rows], collect_stats=True
            )
            labels = batch.labels[rows].flatten()
            loss = next_token_loss(hidden.flatten(0, 1), model.head_weight, labels, model.kernels)
            loss = loss / batch.labels.numel()
            total += float(loss.detach())
            balance = sum(balance_loss(s, config.top_k) for s in stats) / ROWS
            z = sum(z_loss(s) for s in stats) / ROWS
            (loss + config.balance_weight * balance + config.z_weight * z).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


SIDES = {"ours": ours, "bare": bare}


def worker(side: str, layers: int) -> None:
    """Run one step for each line on standard input; answer with its seconds and loss."""
    keep_freed_memory()
    step = SIDES[side](layers)
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    print("ready", flush=True)
    for _ in sys.stdin:
        ids = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH + 1), generator=generator)
        batch = Batch(ids[:, :-1], ids[:, 1:], torch.zeros(ROWS, LENGTH, dtype=torch.int64), positions)
        began = time.perf_counter()
        loss = step(batch)
        print(json.dumps([time.perf_counter() - began, loss]), flush=True)


def main() -> None:
    """Take turns, print the ratio, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help=f"counted pairs of steps, after {WARM} to warm up")
    parser.add_argument("--layers", type=int, default=CONFIG.n_layers, help="fewer for a quick look; 8 are kept")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return worker(arguments.side, arguments.layers)
    command = [sys.executable, __file__, "--layers", str(arguments.layers), "--side"]
    workers = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in SIDES
    }
    for process in workers.values():
        process.stdout.readline()
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    losses: dict[str, list[float]] = {name: [] for name in SIDES}
    for i in range(arguments.steps + WARM):
        for name in sorted(SIDES, reverse=i % 2 == 1):  # whoever is first goes second in the next pair
            workers[name].stdin.write("\n")
            workers[name].stdin.flush()
            seconds, loss = json.loads(workers[name].stdout.readline())
            losses[name].append(loss)
            if i >= WARM:
                times[name].append(seconds)
    for process in workers.values():
        process.stdin.close()
        process.wait()
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["bare"], strict=True))
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"ours {middle['ours']:.3f} s, bare loop {middle['bare']:.3f} s: overhead {ratio - 1:+.1%}; {describe()}")
    print(f"losses {losses['ours'][0]:.4f} to {losses['ours'][-1]:.4f}, at most {apart:.1e} apart")
    if arguments.layers == CONFIG.n_layers:
        result = {"machine": describe(), "overhead": ratio - 1, "seconds": times, "loss_apart": apart}
        print(keep("overhead", result))


if __name__ == "__main__":
    main()
