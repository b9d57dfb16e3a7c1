"""The row kernels in C++ for bf16 on a CPU: built in a second where there is a compiler, and kept for the next time.

The library is cached under a name that carries its source, compiler, flags and the CPU's features, so it is never run
on a machine it was not built for. What it does not cover (fp32, other devices) falls through to torch.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from moesaic.model.kernels.reference import RowKernels

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
SIGNATURES = {  # p pointer, f float, n size; each ends with the number of threads
    "rms_norm": "ppfppnn",
    "rms_norm_backward": "ppppppnn",
    "rotate": "ppppfnnnn",
    "visible_softmax": "ppnnnnnnnn",
    "softmax_backward": "pppnnnn",
    "swiglu": "pppnn",
    "swiglu_backward": "ppppppnn",
    "sum_rows": "pppnnn",
    "cross_entropy": "pppnn",
}
TYPES = {"p": ctypes.c_void_p, "f": ctypes.c_float, "n": ctypes.c_int64}


class NativeRowKernels(RowKernels):
    """`RowKernels` with C++ for bf16 activations on a CPU; results differ from torch's by rounding only."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, letters in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [TYPES[letter] for letter in letters] + [ctypes.c_int]
            function.restype = None
            self._functions[name] = function

    def __deepcopy__(self, memo: object) -> "NativeRowKernels":
        """A copied model computes with the same library."""
        return self

    def _run(self, name: str, *arguments: Tensor | float, threads: int | None = None) -> None:
        plain = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        self._functions[name](*plain, threads or torch.get_num_threads())

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if dtype != torch.bfloat16 or not _plain(torch.float32, x, weight_D):
            return super().rms_norm(x, weight_D, eps, dtype)
        y, rstd = torch.empty_like(x, dtype=dtype), x.new_empty(*x.shape[:-1], 1)
        self._run("rms_norm", x, weight_D, eps, y, rstd, rstd.numel(), x.shape[-1])
        return y, rstd

    def rms_norm_backward(self, x: Tensor, weight_D: Tensor, rstd: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        if not (_plain(torch.bfloat16, dy) and _plain(torch.float32, x, weight_D)):
            return super().rms_norm_backward(x, weight_D, rstd, dy)
        threads = torch.get_num_threads()
        dx, shares = torch.empty_like(x), x.new_zeros(threads, x.shape[-1])
        self._run("rms_norm_backward", x, weight_D, rstd, dy, dx, shares, rstd.numel(), x.shape[-1], threads=threads)
        return dx, shares.sum(dim=0)

    def rotate(self, x_BSHC: Tensor, cos_BSC: Tensor, sin_BSC: Tensor, inverse: bool = False) -> Tensor:
        batch, seq, heads, width = x_BSHC.shape
        rows = x_BSHC.stride()[2:] == (width, 1) and x_BSHC.stride(0) == seq * x_BSHC.stride(1)
        whole = cos_BSC.shape == sin_BSC.shape == (batch, seq, width)
        if not (rows and whole and _plain(torch.bfloat16, cos_BSC, sin_BSC) and _is(torch.bfloat16, x_BSHC)):
            return super().rotate(x_BSHC, cos_BSC, sin_BSC, inverse)
        y = x_BSHC.new_empty(x_BSHC.shape)
        sign = -1.0 if inverse else 1.0
        self._run("rotate", x_BSHC, cos_BSC, sin_BSC, y, sign, batch * seq, heads, width, x_BSHC.stride(1))
        return y

    def visible_softmax(self, scores_NRS: Tensor, starts_BS: Tensor, lo: int, hi: int, first: int) -> Tensor:
        if not (_plain(torch.bfloat16, scores_NRS) and _plain(torch.int64, starts_BS)):
            return super().visible_softmax(scores_NRS, starts_BS, lo, hi, first)
        problems, rows, keys = scores_NRS.shape
        batch, seq = starts_BS.shape
        shape = (problems, hi - lo, rows // (hi - lo), keys, problems // batch, seq, lo, first)
        self._run("visible_softmax", scores_NRS, starts_BS, *shape)
        return scores_NRS

    def softmax_backward(self, dp_NRS: Tensor, p_NRS: Tensor, delta_NR: Tensor) -> Tensor:
        if not (_plain(torch.bfloat16, dp_NRS, p_NRS) and _is(torch.float32, delta_NR) and delta_NR.stride(1) == 1):
            return super().softmax_backward(dp_NRS, p_NRS, delta_NR)
        self._run("softmax_backward", dp_NRS, p_NRS, delta_NR, *dp_NRS.shape, delta_NR.stride(0))
        return dp_NRS

    def swiglu(self, h_R2F: Tensor, weight_R: Tensor) -> Tensor:
        if not (_plain(torch.bfloat16, h_R2F) and _plain(torch.float32, weight_R)):
            return super().swiglu(h_R2F, weight_R)
        rows, width = h_R2F.shape[0], h_R2F.shape[1] // 2
        a_RF = h_R2F.new_empty(rows, width)
        self._run("swiglu", h_R2F, weight_R, a_RF, rows, width)
        return a_RF

    def swiglu_backward(self, h_R2F: Tensor, weight_R: Tensor, da_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not (_plain(torch.bfloat16, h_R2F, da_RF) and _plain(torch.float32, weight_R)):
            return super().swiglu_backward(h_R2F, weight_R, da_RF)
        a_RF, dh_R2F, dweight_R = torch.empty_like(da_RF), torch.empty_like(h_R2F), torch.empty_like(weight_R)
        self._run("swiglu_backward", h_R2F, weight_R, da_RF, a_RF, dh_R2F, dweight_R, *da_RF.shape)
        return a_RF, dh_R2F, dweight_R

    def sum_rows(self, y_RD: Tensor, place_TK: Tensor) -> Tensor:
        if not (_plain(torch.bfloat16, y_RD) and _plain(torch.int64, place_TK)):
            return super().sum_rows(y_RD, place_TK)
        out_TD = y_RD.new_empty(place_TK.shape[0], y_RD.shape[1])
        self._run("sum_rows", y_RD, place_TK, out_TD, *place_TK.shape, y_RD.shape[1])
        return out_TD

    def cross_entropy(self, logits_TV: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        known = not labels_T.numel() or int(labels_T.max()) < logits_TV.shape[1]  # else torch says what is wrong
        if not (known and _plain(torch.bfloat16, logits_TV) and _plain(torch.int64, labels_T)):
            return super().cross_entropy(logits_TV, labels_T)
        loss_T = logits_TV.new_empty(labels_T.shape, dtype=torch.float32)
        self._run("cross_entropy", logits_TV, labels_T, loss_T, *logits_TV.shape)
        return loss_T.sum(), logits_TV


def _is(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether all hold numbers of this type at an address: not those that stand for shards, traces or shapes."""
    return all(type(t) in (Tensor, nn.Parameter) and t.dtype == dtype and t.device.type == "cpu" for t in tensors)


def _plain(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether the pointers of these tensors say it all."""
    return _is(dtype, *tensors) and all(t.is_contiguous() for t in tensors)


def build(name: str = "rows", cache: Path | None = None) -> ctypes.CDLL | str:
    """The library compiled from `name`.cpp and the headers here, or in a few words why there is none."""
    found = [path for name in COMPILERS if (path := shutil.which(name))]
    here = resources.files(__package__)
    headers = sorted(file.name for file in here.iterdir() if file.name.endswith(".h"))
    files = {file: here.joinpath(file).read_bytes() for file in (f"{name}.cpp", *headers)}
    why = "no C++ compiler"
    for compiler in found:
        identity = [*files.values(), " ".join(FLAGS).encode(), compiler.encode(), _cpu().encode()]
        library = f"{name}-{hashlib.sha256(b'|'.join(identity)).hexdigest()[:16]}.so"
        try:
            target = (cache or Path.home() / ".cache" / "moesaic") / library
            if not target.exists():
                _compile(compiler, files, target)
            try:
                return ctypes.CDLL(str(target))
            except OSError:  # cut short by a crash, perhaps: once more
                _compile(compiler, files, target)
                return ctypes.CDLL(str(target))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            why = f"{Path(compiler).name}: {error}"
    return why


def _compile(compiler: str, files: Mapping[str, bytes], target: Path) -> None:
    """Write the library whole or not at all, from the first of `files`. Raises OSError or SubprocessError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for file, source in files.items():
            (Path(scratch) / file).write_bytes(source)
        command = [compiler, *FLAGS, "-o", "library.so", next(iter(files))]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise subprocess.SubprocessError(lines[-1])
        (Path(scratch) / "library.so").replace(target)


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith("model name")), "")
    return " ".join((platform.machine(), platform.processor(), model, features))
