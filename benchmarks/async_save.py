"""How long does a save hold up training? The part of it that blocks, against a save that training waits for.

    python benchmarks/async_save.py [--megabytes 400] [--repeats 5] [--folder DIR]

Weights and AdamW's two moments in fp32, in one process and cut over two gloo ranks (half on each), all threads shared
out. After a first save that touches the buffers, each repeat saves three ways: waiting for the end; in the background,
copied before the call returns; in the background, copied beside the computation. In the last two the main thread
multiplies matrices until the save has ended, as training would: its rate beside its rate alone says what a save in the
background costs besides blocking. With the overlapped copy, `wait_copied` is called after a step's worth of
multiplications (--step-ms), and what it waits counts as blocked. Medians. Writes results/async_save.json.
"""

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import describe, keep

from moesaic.train.checkpoint import CheckpointStore, SaveReport

TENSOR = 1024 * 512  # elements: 2 MB, a matrix of the pocket recipe's size
WAYS = ("waited for", "background", "overlapped")


def state_of(megabytes: int, ranks: int) -> dict[str, Any]:
    """This rank's share: as many equal tensors as it takes; a third are weights."""
    count = max(1, round(megabytes * 1e6 / (12 * TENSOR) / ranks))
    names = [f"layers.{i}.r{dist.get_rank() if ranks > 1 else 0}" for i in range(count)]
    model = {name: torch.randn(1024, 512) for name in names}
    moments = {name: {"exp_avg": torch.randn(1024, 512), "exp_avg_sq": torch.rand(1024, 512)} for name in names}
    return {"model": model, "optimizer": moments}


class Work:
    """What stands for training: products of matrices."""

    def __init__(self) -> None:
        self.a, self.b = torch.randn(512, 512), torch.randn(512, 512)

    def seconds_of(self, products: int) -> float:
        """Of so many products."""
        began = time.perf_counter()
        for _ in range(products):
            torch.mm(self.a, self.b)
        return time.perf_counter() - began


def save(store: CheckpointStore, step: int, state: dict[str, Any], way: str, work: Work, a_step: int) -> SaveReport:
    """One save; how it went. Sets `work.slowed` to the time of a product beside the save, against alone."""
    alone = work.seconds_of(a_step)
    store.save(step, state, {}, background=way != "waited for", overlap=way == "overlapped")
    beside: list[float] = []
    if way != "waited for":
        beside.append(work.seconds_of(a_step))
        store.wait_copied()
        while not (reports := store.reports()):
            beside.append(work.seconds_of(a_step))
    else:
        reports = store.reports()
    assert store.wait()
    work.slowed = statistics.mean(beside) / alone if beside else 1.0
    return reports[0]


def measure(rank: int, ranks: int, port: int, arguments: argparse.Namespace, folder: Path, out: Any) -> None:
    """Every way `repeats` times, in turn; rank 0 hands back the rows."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    state, work = state_of(arguments.megabytes, ranks), Work()
    a_step = max(1, round(arguments.step_ms / 1e3 / (work.seconds_of(50) / 50)))
    store = CheckpointStore(folder, keep=1, retries=0)
    first = save(store, 1, state, "background", work, a_step)
    rows: dict[str, list[tuple[SaveReport, float]]] = {way: [] for way in WAYS}
    step = 1
    for _ in range(arguments.repeats):
        for way in WAYS:
            if ranks > 1:
                dist.barrier()
            step += 1
            rows[way].append((save(store, step, state, way, work, a_step), work.slowed))
    waited = statistics.median(r.seconds for r, _ in rows["waited for"])
    result: dict[str, Any] = {
        "ranks": ranks,
        "threads_per_rank": torch.get_num_threads(),
        "bytes": first.bytes,
        "first_blocked_seconds": first.blocked_seconds,
        "waited_for_seconds": waited,
    }
    for way in WAYS[1:]:
        blocked = statistics.median(r.blocked_seconds for r, _ in rows[way])
        result[way] = {
            "blocked_seconds": blocked,
            "blocked_share": blocked / waited,
            "seconds": statistics.median(r.seconds for r, _ in rows[way]),
            "work_slowed_by": statistics.median(s for _, s in rows[way]),
            "lost_seconds": statistics.median(r.blocked_seconds + r.seconds * (1 - 1 / s) for r, s in rows[way]),
        }
    if rank == 0:
        out.put(result)
    if ranks > 1:
        dist.barrier()
    out.close()
    out.join_thread()
    os._exit(0)  # gloo's threads sometimes outlive the group


def main() -> None:
    """Measure one process and two ranks, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="size of the state, of all ranks together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=200.0, help="length of a training step")
    parser.add_argument("--folder", type=Path, default=None, help="where to save; default: the system's place")
    arguments = parser.parse_args()
    rows = []
    for ranks in (1, 2):
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out = mp.get_context("spawn").Queue()
        try:
            mp.spawn(measure, (ranks, port, arguments, folder, out), nprocs=ranks)
            rows.append(out.get(timeout=10))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row = rows[-1]
        print(f"{ranks} rank(s), {row['bytes'] / 1e6:.0f} MB: waited for {row['waited_for_seconds']:.2f} s")
        for way in WAYS[1:]:
            r = row[way]
            print(
                f"  {way}: blocked {r['blocked_seconds'] * 1e3:.1f} ms, {r['blocked_share']:.1%} of that; done after "
                f"{r['seconds']:.2f} s, in which work took {r['work_slowed_by']:.2f} x its time: "
                f"{r['lost_seconds']:.2f} s of work lost in all"
            )
    print(keep("async_save", {"machine": describe(), "rows": rows}))


if __name__ == "__main__":
    main()
