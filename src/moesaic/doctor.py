"""What this machine is and how fast it is, measured in a few seconds."""

import importlib.util
import mmap
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import moesaic
from moesaic.errors import MoesaicError
from moesaic.model import gemm_peak
from moesaic.model.kernels import choose_kernels
from moesaic.train.machine import cpu_has_bf16

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
EXTRAS = {
    "train": ("datasketch", "jinja2", "safetensors", "tokenizers"),
    "serve": ("fastapi", "httptools", "prometheus_client", "uvicorn"),
    "parquet": ("pyarrow",),
    "hf": ("datasets",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
COMPILERS = ("cc", "gcc", "clang", "g++", "nvcc", "ninja")
TRIAD_BYTES = 64 << 20  # of one array: beyond the last cache of nearly all machines
WRITE_BYTES = 256 << 20


def examine(folder: Path) -> dict[str, Any]:
    """Everything `moesaic doctor` reports; `folder` is where the disk is measured. Rates are per second."""
    return {
        "moesaic": moesaic.__version__,
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "onednn": torch.backends.mkldnn.enabled,
        },
        "cpu": cpu(),
        "memory": {"bytes": _memory(), "bandwidth": triad_bandwidth()},
        "gpus": [gpu(i) for i in range(torch.cuda.device_count())],
        "disk": disk(folder),
        "extras": {n: all(importlib.util.find_spec(m) is not None for m in ms) for n, ms in EXTRAS.items()},
        "kernels": choose_kernels("auto", torch.device("cpu"), cpu_has_bf16())[1],
        "compilers": {name: shutil.which(name) is not None for name in COMPILERS},
    }


def cpu() -> dict[str, Any]:
    """Model, cores this process may use, instruction sets, and the measured matrix-product peak in FLOP/s."""
    lines = _cpuinfo().splitlines()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set((named.get("flags") or named.get("Features") or "").split())
    return {
        "model": named.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": {flag: flag in flags for flag in CPU_FLAGS},
        "gemm_fp32": gemm_peak(torch.float32),
        "gemm_bf16": gemm_peak(torch.bfloat16),
    }


def gpu(index: int) -> dict[str, Any]:
    """One GPU: name, memory in bytes, and its measured peak in FLOP/s."""
    properties = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "gemm_fp32": gemm_peak(torch.float32, device),
        "gemm_bf16": gemm_peak(torch.bfloat16, device),
    }


def triad_bandwidth(seconds: float = 0.3) -> float:
    """Memory bandwidth of `a = b + 3 c` (McCalpin's STREAM triad): 3 arrays a pass. Bytes per second."""
    b, c = (torch.ones(TRIAD_BYTES // 4) for _ in range(2))
    a = torch.empty_like(b)
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        begin = time.perf_counter()
        torch.add(b, c, alpha=3, out=a)
        best = max(best, 3 * TRIAD_BYTES / (time.perf_counter() - begin))
    return best


def disk(folder: Path) -> dict[str, Any]:
    """Free bytes and the rate of writing to the disk (synced, not to the page cache). Raises MoesaicError."""
    free = shutil.disk_usage(folder).free
    size = min(WRITE_BYTES, free // 4)
    with mmap.mmap(-1, 1 << 20) as block:
        block.write(os.urandom(1 << 20))  # some file systems would compress zeros away
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                begin = time.perf_counter()
                for _ in range(size >> 20):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
                elapsed = time.perf_counter() - begin
        except OSError as error:
            raise MoesaicError(
                f"cannot write to {folder.resolve()}: {error.strerror}; run doctor in another folder"
            ) from error
    return {"folder": str(folder.resolve()), "free": free, "write": (size >> 20 << 20) / elapsed}


def describe(found: dict[str, Any]) -> str:
    """The findings as lines for people, with advice where something is slow or missing."""
    torch_, cpu_, memory, disk_ = found["torch"], found["cpu"], found["memory"], found["disk"]
    rows = [
        ("moesaic", f"{found['moesaic']}, Python {found['python']}, torch {torch_['version']}"),
        (
            "threads",
            f"{torch_['threads']} of {cpu_['cores']} cores" + ("" if torch_["onednn"] else ", without oneDNN"),
        ),
        ("cpu", cpu_["model"]),
        ("", " ".join(f"{'+' if has else '-'}{flag}" for flag, has in cpu_["flags"].items())),
        ("products", f"{_rate(cpu_['gemm_fp32'])} in fp32, {_rate(cpu_['gemm_bf16'])} in bf16"),
        ("memory", f"{memory['bytes'] / 1e9:.1f} GB, {memory['bandwidth'] / 1e9:.1f} GB/s"),
        ("disk", f"{disk_['free'] / 1e9:.1f} GB free, {disk_['write'] / 1e6:,.0f} MB/s written"),
    ]
    for number, one in enumerate(found["gpus"]):
        text = f"{one['name']}, {one['memory'] / 1e9:.0f} GB, {_rate(one['gemm_bf16'])} in bf16"
        rows.append((f"gpu {number}", text))
    if not found["gpus"]:
        rows.append(("gpu", "none"))
    rows.append(("kernels", found["kernels"]))
    rows.append(("extras", _marks(found["extras"])))
    rows.append(("compilers", _marks(found["compilers"])))
    if cpu_["gemm_bf16"] < cpu_["gemm_fp32"]:
        rows.append(("note", "bf16 is slower than fp32 here; stages with precision = auto use fp32"))
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _marks(table: dict[str, bool]) -> str:
    return " ".join(f"{'+' if has else '-'}{name}" for name, has in table.items())


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.0f} GFLOP/s"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _memory() -> int:
    """Physical memory in bytes; 0 where the system does not say."""
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
