"""One training step of ours and of transformers' Mixtral, alternating in one process each, same shapes, same data.

    python benchmarks/train_vs_transformers.py [--steps 12] [--compile]

Model: d 384, 8 layers, 6 heads x 64, 1 KV head, 16 experts x 768 top-2, vocabulary 8,192; 8 x 512 tokens; AdamW.
FLOPs are 6 x active parameters; the peak is the best bf16 F.linear over 1024^3, 2048^3 and 512 x 768 x 384.
Both sides run in turn in worker processes, so that one's allocator settings and memory do not touch the other's.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from machine import describe, keep

from moesaic.data import Batch
from moesaic.model import Transformer, initialise
from moesaic.model.kernels import choose_kernels
from moesaic.model.peak import gemm_peak
from moesaic.parallel.engine import Engine
from moesaic.recipe import BatchStep, Model, Optimizer, Stage
from moesaic.train.memory import keep_freed_memory
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep

SEQUENCES, LENGTH, VOCABULARY = 8, 512, 8192
TOKENS = SEQUENCES * LENGTH
CONFIG = Model(
    vocab_size=VOCABULARY, d_model=384, n_layers=8, n_heads=6, head_dim=64, n_kv_heads=1, d_ff=768, context=LENGTH
)


def batches() -> Callable[[], torch.Tensor]:
    """The same token ids for both sides: `[sequences, length + 1]` a call."""
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)


def ours() -> Callable[[], float]:
    """Our step, as `moesaic train` runs it, router losses and clipping included."""
    keep_freed_memory()
    model = Transformer(CONFIG, torch.bfloat16)
    model.use_kernels(choose_kernels("auto", torch.device("cpu"))[0])
    initialise(model, 0)
    stage = Stage(
        name="speed",
        sources=("none",),
        tokens=TOKENS,
        seq_len=LENGTH,
        batch=(BatchStep(tokens=TOKENS),),
        micro_batch=SEQUENCES,
        optimizer=Optimizer(lr=1e-4),
    )
    step, draw = (
        TrainStep(Engine.over(model), stage, build_optimizer(model.named_parameters(), stage.optimizer)),
        batches(),
    )
    positions = torch.arange(LENGTH).expand(SEQUENCES, LENGTH)

    def run() -> float:
        ids = draw()
        documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int64)
        return step(Batch(ids[:, :-1], ids[:, 1:], documents, positions), 1e-4).loss

    return run


def theirs(compiled: bool) -> Callable[[], float]:
    """transformers' Mixtral with grouped_mm experts, SDPA, bf16 autocast, fused AdamW and the same clip."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=CONFIG.d_model,
        intermediate_size=CONFIG.d_ff,
        num_hidden_layers=CONFIG.n_layers,
        num_attention_heads=CONFIG.n_heads,
        head_dim=CONFIG.head_dim,
        num_key_value_heads=CONFIG.n_kv_heads,
        num_local_experts=CONFIG.n_experts,
        num_experts_per_tok=CONFIG.top_k,
        tie_word_embeddings=True,
        max_position_embeddings=LENGTH,
        output_router_logits=True,
        attn_implementation="sdpa",
        experts_implementation="grouped_mm",
    )
    model = MixtralForCausalLM(config)
    assert model.config._experts_implementation == "grouped_mm"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward, draw = torch.compile(model) if compiled else model, batches()

    def run() -> float:
        ids = draw()
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


SIDES = {"ours": ours, "transformers": lambda: theirs(False), "transformers compiled": lambda: theirs(True)}


def worker(side: str) -> None:
    """Run one step for each line on standard input; answer with its seconds and the peak memory so far."""
    step = SIDES[side]()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def main() -> None:
    """Alternate the sides, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="counted steps of each side, after 6 to warm up")
    parser.add_argument("--compile", action="store_true", help="transformers compiled as well (minutes more)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return worker(arguments.side)
    names = [n for n in SIDES if arguments.compile or "compiled" not in n]
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--side", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    for process in workers.values():
        process.stdout.readline()
    times: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    peaks = []
    for i in range(arguments.steps + 6):
        for name, process in workers.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds, memory[name] = json.loads(process.stdout.readline())
            if i >= 6:
                times[name].append(seconds)
        if i >= 6 and i % 4 == 0:
            peaks.append(gemm_peak(torch.bfloat16, torch.device("cpu")))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    peak = statistics.median(peaks)
    rows = {}
    print(f"GEMM peak {peak / 1e9:.0f} GFLOP/s; {describe()}")
    print("| side | tokens/s | GFLOP/s | share of GEMM peak | peak memory, MB | times transformers |")
    print("| --- | --- | --- | --- | --- | --- |")
    best = min(statistics.median(times[n]) for n in names if n != "ours")
    for name in names:
        seconds = statistics.median(times[name])
        flops = 6 * CONFIG.active_parameters * TOKENS / seconds
        rows[name] = {
            "tokens_per_second": TOKENS / seconds,
            "flops_per_second": flops,
            "peak_share": flops / peak,
            "peak_memory_mb": memory[name],
            "ratio": best / seconds,
            "seconds": times[name],
        }
        print(
            f"| {name} | {TOKENS / seconds:,.0f} | {flops / 1e9:.0f} | {flops / peak:.0%} | "
            f"{memory[name]:,.0f} | {best / seconds:.2f} |"
        )
    print(keep("train_vs_transformers", {"machine": describe(), "gemm_peak": peak, "rows": rows}))


if __name__ == "__main__":
    main()
