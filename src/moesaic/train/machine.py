"""What this process computes on: device, arithmetic, and the measured peak that utilisation refers to."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from moesaic.model.peak import gemm_peak


@dataclass(frozen=True)
class Machine:
    """The device of this process."""

    device: torch.device
    has_bf16: bool
    threads: int

    @classmethod
    def detect(cls) -> "Machine":
        """A GPU if there is one, else the CPU."""
        if torch.cuda.is_available():
            return cls(torch.device("cuda"), torch.cuda.is_bf16_supported(), torch.get_num_threads())
        return cls(torch.device("cpu"), cpu_has_bf16(), torch.get_num_threads())

    def compute_dtype(self, precision: Literal["auto", "bf16", "fp32"]) -> torch.dtype:
        """Arithmetic of matrix products; `auto` takes bf16 only where it is faster than fp32."""
        bf16 = precision == "bf16" or (precision == "auto" and self.has_bf16)
        return torch.bfloat16 if bf16 else torch.float32

    def wait(self) -> None:
        """Until the device has done what it was given: only then does a clock tell its time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, dtype: torch.dtype) -> float:
        """Measured matrix-product rate, FLOP/s."""
        return gemm_peak(dtype, self.device)

    @property
    def name(self) -> str:
        """The device for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{cpu_model()}, {self.threads} threads"


def cpu_model() -> str:
    """Name of the processor as the kernel gives it."""
    lines = [line for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.machine()


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively (AVX-512 BF16 or AMX)."""
    info = _cpuinfo()
    return "avx512_bf16" in info or "amx_bf16" in info


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
