"""What lies between the matrix products of a training step: torch expressions, and the same in C++ for a CPU."""

from typing import Literal

import torch

from moesaic.errors import ModelError
from moesaic.model.kernels.native import NativeRowKernels, build
from moesaic.model.kernels.reference import RowKernels

KernelChoice = Literal["auto", "native", "torch"]


def choose_kernels(choice: KernelChoice, device: torch.device, bf16: bool = True) -> tuple[RowKernels, str]:
    """The row kernels to use and, in a few words, why these. `bf16`: whether anything is computed in it.

    `auto` takes the C++ ones on a CPU where they build and agree with torch, else torch. Raises ModelError when
    `native` is asked for and cannot be had.
    """
    if choice == "torch":
        return RowKernels(), "torch, as asked"
    why = "C++ covers bf16, this computes in fp32" if device.type == "cpu" else f"none for {device.type}"
    if device.type == "cpu" and bf16:
        library = build()
        if not isinstance(library, str):
            native = NativeRowKernels(library)
            if agrees(native):
                return native, "native (C++ for bf16)"
            library = "the compiled ones disagree with torch"
        why = library
    if choice == "native":
        raise ModelError(f"no native kernels here ({why}); use --kernels torch, or install a C++ compiler such as g++")
    return RowKernels(), f"torch ({why})"


def agrees(kernels: RowKernels) -> bool:
    """A last look before a compiled library is trusted: a norm, a SwiGLU and a loss against torch in fp32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 134, generator=generator).bfloat16()
    weight, labels = torch.randn(5, generator=generator), torch.tensor([3, -100, 66, 0, 133])
    results = []
    for rows, numbers in ((kernels, x), (RowKernels(), x.float())):
        normed, rstd = rows.rms_norm(x.float(), weight.repeat(27)[:134], 1e-5, torch.bfloat16)
        swiglu = rows.swiglu_backward(numbers, weight, numbers[:, :67].contiguous())
        results.append((normed, rstd, *swiglu, *rows.cross_entropy(numbers.clone(), labels)))
    return all(torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02) for a, b in zip(*results, strict=True))


__all__ = ["KernelChoice", "NativeRowKernels", "RowKernels", "choose_kernels"]
