"""The matrix-multiplication peak of a device, measured: what "share of peak" refers to."""

import time

import torch
import torch.nn.functional as F

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (512, 768, 384))  # rows, outputs, inputs


def gemm_peak(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seconds: float = 0.5) -> float:
    """Best rate of `F.linear` over three shapes, in FLOP/s; takes about `seconds` in all."""
    device = torch.device(device)
    best = 0.0
    for rows, outputs, inputs in SHAPES:
        # The product's speed does not depend on the values, but denormals and NaN are slow on some CPUs.
        x = torch.ones(rows, inputs, dtype=dtype, device=device)
        weight = torch.ones(outputs, inputs, dtype=dtype, device=device)
        end = time.perf_counter() + seconds / len(SHAPES)
        repeats = 1
        with torch.inference_mode():
            F.linear(x, weight)  # compiles the kernel
            while time.perf_counter() < end:
                elapsed = _time(x, weight, repeats)
                best = max(best, 2 * rows * outputs * inputs * repeats / elapsed)
                if elapsed < 0.01:  # too short to measure
                    repeats *= 2
    return best


def _time(x: torch.Tensor, weight: torch.Tensor, repeats: int) -> float:
    """Seconds that `repeats` products take."""
    cuda = x.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(x.device)
    begin = time.perf_counter()
    for _ in range(repeats):
        F.linear(x, weight)
    if cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begin
