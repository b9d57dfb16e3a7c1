"""What lies between the matrix products of a training step: torch expressions, and the same in C++ for a CPU."""

from typing import Literal

import torch

from moesaic.errors import ModelError
from moesaic.model.kernels.native import NativeRowKernels, build
from moesaic.model.kernels.reference import RowKernels

KernelChoice = Literal["auto", "native", "torch"]


def choose_kernels(choice: KernelChoice, device: torch.device) -> tuple[RowKernels, str]:
    """The row kernels to use and, in a few words, why these.

    `auto` takes the C++ ones on a CPU where they build and agree with torch, else torch. Raises ModelError when
    `native` is asked for and cannot be had.
    """
    if choice == "torch":
        return RowKernels(), "torch, as asked"
    why = f"none for {device.type}"
    if device.type == "cpu":
        library = build()
        if not isinstance(library, str):
            native = NativeRowKernels(library)
            if _agrees(native):
                return native, "native (C++ for bf16)"
            library = "the compiled ones disagree with torch"
        why = library
    if choice == "native":
        raise ModelError(f"no native kernels here ({why}); use --kernels torch, or install a C++ compiler such as g++")
    return RowKernels(), f"torch ({why})"


def _agrees(native: RowKernels) -> bool:
    """A last look before a compiled library is trusted: one kernel with every kind of operation, against torch."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 67, generator=generator).bfloat16()
    labels = torch.tensor([3, -100, 66, 0])
    (loss, gradient), (loss_too, gradient_too) = (
        k.cross_entropy(logits.clone(), labels) for k in (native, RowKernels())
    )
    return torch.allclose(loss, loss_too, rtol=0.02) and torch.allclose(gradient, gradient_too, atol=0.01)


__all__ = ["KernelChoice", "NativeRowKernels", "RowKernels", "choose_kernels"]
