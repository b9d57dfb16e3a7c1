"""Why 16 experts? A dense model, and 16, 64 and 128 experts of which each token visits two, at equal active size.

    python benchmarks/experts.py [--tokens 600_000] [--seeds 1,2]
    python benchmarks/experts.py --tokens 2_400_000 --seeds 1 --experts 1,16 --name experts_longer

Every model is the pocket recipe's but for the number of experts; the dense one has one expert as wide as two. Each is
pre-trained on the same batches in the same order at the same learning rates, and read out: bits per byte on held-out
dialogue along the way, seconds, experts that went idle, spikes, and tokens per second when it answers one conversation
and sixteen at once. Writes results/NAME.json; docs/experts.md is written from it.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, describe, keep

from moesaic.data import DataFolder, Loader, build_data
from moesaic.evals import bits_per_byte
from moesaic.model import Cache, Transformer, initialise
from moesaic.model.kernels import choose_kernels
from moesaic.parallel.engine import Engine
from moesaic.recipe import Recipe, read_recipe
from moesaic.train.machine import Machine
from moesaic.train.memory import keep_freed_memory
from moesaic.train.optimizer import build_optimizer
from moesaic.train.schedule import learning_rate
from moesaic.train.step import TrainStep

LOOKS = 5  # evaluations along the way
HELD_OUT_TOKENS = 60_000
IDLE = 0.1  # an expert with less than this share of an even load counts as idle
SPIKE = 2.0  # a gradient norm beyond this multiple of the median of the 32 before it counts as a spike


def variant(experts: int, tokens: int, seed: int) -> Recipe:
    """The pocket recipe with `experts` experts of unchanged active size."""
    width = read_recipe("pocket").model.d_ff
    values = [f"seed={seed}", f"stages.pretrain.tokens={tokens}", f"model.n_experts={experts}"]
    if experts == 1:
        values += ["model.top_k=1", f"model.d_ff={2 * width}"]
    return read_recipe("pocket", values)


def train(recipe: Recipe, data: DataFolder) -> tuple[Transformer, dict[str, Any]]:
    """Pre-train, look at held-out dialogue `LOOKS` times (its time is not counted), and say how it went."""
    machine, stage = Machine.detect(), recipe.stages[0]
    with machine.device:
        model = Transformer(recipe.model, machine.compute_dtype(stage.precision))
    model.use_kernels(choose_kernels("auto", machine.device)[0])
    initialise(model, recipe.seed)
    step = TrainStep(Engine.over(model), stage, build_optimizer(model.named_parameters(), stage.optimizer))
    loader = Loader(data, stage, recipe, seed=1)  # the same batches whatever the weights' seed
    done, seconds, norms, loads, curve = 0, 0.0, [], [], []
    while done < stage.tokens:
        began = time.perf_counter()
        batch = loader.next_batch(stage.batch_tokens(done) // stage.seq_len)
        assert batch is not None
        done += batch.input_tokens
        result = step(batch.to(machine.device), learning_rate(stage.optimizer, done, stage.tokens))
        seconds += time.perf_counter() - began
        norms.append(result.grad_norm)
        loads.append(result.load)
        if done >= stage.tokens * (len(curve) + 1) / LOOKS:
            bits = bits_per_byte(model, data, "dialogue", stage.seq_len, HELD_OUT_TOKENS)
            assert bits is not None
            curve.append({"tokens": done, "seconds": seconds, "bits": bits.bits_per_byte, "error": bits.standard_error})
            print(f"  {done:9,} tokens {seconds:5.0f} s {bits.bits_per_byte:.3f} bits per byte", flush=True)
    return model, {"curve": curve, "steps": len(norms), "spikes": spikes(norms), **idle(loads[-32:])}


def spikes(norms: list[float]) -> int:
    """Steps after the first 64 whose gradient norm stands out."""
    return sum(norms[i] > SPIKE * statistics.median(norms[i - 32 : i]) for i in range(64, len(norms)))


def idle(loads: list[list[list[float]]]) -> dict[str, float]:
    """Share of experts that are idle, and the largest load as a multiple of an even one, over the last steps."""
    mean_LE = torch.tensor(loads).mean(dim=0)
    if not mean_LE.numel():
        return {"idle": 0.0, "busiest": 1.0}
    even = 1 / mean_LE.shape[1]
    return {"idle": float((mean_LE < IDLE * even).float().mean()), "busiest": float(mean_LE.max() / even)}


@torch.inference_mode()
def decode_rate(model: Transformer, conversations: int, prompt: int = 64, tokens: int = 48) -> float:
    """Tokens per second over all conversations, one token each a step, in fp32 as `moesaic chat` runs."""
    model.compute_dtype = torch.float32
    cache = Cache(model.config, conversations, prompt + tokens, torch.float32, model.embedding.device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (conversations, prompt), generator=generator).to(
        model.embedding.device
    )
    following = model(ids, cache=cache)[:, -1:].argmax(dim=-1)
    began = time.perf_counter()
    for _ in range(tokens):
        following = model(following, cache=cache).argmax(dim=-1)
    return conversations * tokens / (time.perf_counter() - began)


def main() -> None:
    """Train every variant for every seed, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=600_000, help="pre-training tokens of each run")
    parser.add_argument("--seeds", default="1,2", help="seeds of the weights")
    parser.add_argument("--home", type=Path, default=Path("runs/data"), help="where data folders stand")
    parser.add_argument("--experts", default="1,16,64,128", help="numbers of experts; 1 is the dense model")
    parser.add_argument("--name", default="experts", help="of the result")
    parser.add_argument("--show", action="store_true", help="only print the table of the kept result")
    arguments = parser.parse_args()
    if arguments.show:
        return print_table(json.loads((RESULTS / f"{arguments.name}.json").read_text())["rows"])
    seeds = [int(s) for s in arguments.seeds.split(",")]
    keep_freed_memory()
    data = build_data(read_recipe("pocket"), arguments.home, print)
    rows = []
    for experts in (int(e) for e in arguments.experts.split(",")):
        runs = []
        for seed in seeds:
            recipe = variant(experts, arguments.tokens, seed)
            print(f"{experts} experts, seed {seed}", flush=True)
            model, run = train(recipe, data)
            run["decode_1"], run["decode_16"] = (
                statistics.median(decode_rate(model, n) for _ in range(3)) for n in (1, 16)
            )
            runs.append({"seed": seed, **run})
        shape = recipe.model
        rows.append({"experts": experts, "active": shape.active_parameters, "total": shape.parameters(), "runs": runs})
        del model
    print_table(rows)
    print(keep(arguments.name, {"machine": describe(), "tokens": arguments.tokens, "seeds": seeds, "rows": rows}))


def print_table(rows: list[dict[str, Any]]) -> None:
    """The tables of docs/experts.md: means over seeds, times of the fastest."""
    names = ("active M", "total M", "bits per byte", "seconds", "bits at the dense model's end", "idle", "busiest")
    print("| experts | " + " | ".join((*names, "spikes", "tokens/s, 1 chat", "tokens/s, 16 chats")) + " |")
    print("| --- " * (len(names) + 4) + "|")
    dense_seconds = min(r["curve"][-1]["seconds"] for r in rows[0]["runs"])
    for row in rows:
        runs = row["runs"]
        ends = [r["curve"][-1]["bits"] for r in runs]
        at_dense = min(bits_after(r["curve"], dense_seconds) for r in runs)
        cells = (
            f"{row['active'] / 1e6:.2f}",
            f"{row['total'] / 1e6:.1f}",
            f"{statistics.mean(ends):.3f} ({min(ends):.3f}-{max(ends):.3f})",
            f"{min(r['curve'][-1]['seconds'] for r in runs):.0f}",
            f"{at_dense:.3f}",
            f"{statistics.mean(r['idle'] for r in runs):.1%}",
            f"{statistics.mean(r['busiest'] for r in runs):.1f} x",
            f"{statistics.mean(r['spikes'] for r in runs):.1f}",
            f"{max(r['decode_1'] for r in runs):.0f}",
            f"{max(r['decode_16'] for r in runs):.0f}",
        )
        print(f"| {'dense' if row['experts'] == 1 else row['experts']} | " + " | ".join(cells) + " |")


def bits_after(curve: list[dict[str, float]], seconds: float) -> float:
    """Bits per byte after so many seconds, between two looks on a straight line."""
    before = curve[0]
    for point in curve:
        if point["seconds"] >= seconds:
            span = point["seconds"] - before["seconds"]
            share = (seconds - before["seconds"]) / span if span else 1.0
            return before["bits"] + share * (point["bits"] - before["bits"])
        before = point
    return before["bits"]


if __name__ == "__main__":
    main()
