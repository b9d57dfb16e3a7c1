"""A decoder in C++ for a CPU: packs the weights once, then computes a whole step in one call.

The C++ is model/kernels/decode.cpp.

Every row is summed in an order of its own, so its numbers do not depend on what else is in the step: batch-invariant
without a price. bf16 as stored, or fp32.

Legend: T rows (new positions of all requests), R wanted rows, L layers, E experts, N columns, K inner
width of a product.
"""

import ctypes
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moesaic.model import Transformer
from moesaic.model.block import Block
from moesaic.model.kernels.native import build
from moesaic.model.rotary import rotary_table
from moesaic.recipe import Model
from moesaic.serve.batch import StepBatch

PANEL, LANES = 32, 16
BLOCK_SIZE = 16


def _structure(name: str, **fields: str) -> type[Structure]:
    """p pointer, n size, f float, i int; names separated by spaces, in the order of the C++ structure."""
    kinds = {"p": c_void_p, "n": c_int64, "f": c_float, "i": c_int32}
    return type(
        name, (Structure,), {"_fields_": [(f, kinds[k[0]]) for k, names in fields.items() for f in names.split()]}
    )


_Layer = _structure(
    "_Layer",
    p="attention_norm experts_norm q_norm k_norm b_qkv b_out w_qkv w_out router w_up w_down keys values",
    n="experts inner",
)
_Model = _structure(
    "_Model",
    n="layers width heads kv_heads head_width top_k vocabulary window",
    f="eps clip",
    i="renormalise threads",
    p="layer embedding head norm cosine sine",
)
_Step = _structure(
    "_Step",
    n="rows wanted table_width",
    p="tokens positions request tables wanted_rows logits chosen "
    "x normed qkv attended inner wide weights out scores place",
)


def open_library() -> ctypes.CDLL | str:
    """The compiled decoder, or in a few words why there is none."""
    return build("decode")


def uncovered(model: Transformer) -> str | None:
    """In a few words, what of a model the C++ does not compute."""
    config: Model = model.config
    widths = [config.d_ff_of(n) for n in range(config.n_layers)]
    wrong = {
        f"computes in {model.compute_dtype}": model.compute_dtype not in (torch.bfloat16, torch.float32),
        "on another device": model.embedding.device.type != "cpu",
        "norm over all heads together": config.qk_norm == "all",
        "biases of experts": config.mlp_bias,
        "dynamic rotary scaling": config.rope_scaling is not None and config.rope_scaling.kind == "dynamic",
        "a head width that 16 does not divide": config.head_dim % LANES != 0 or config.head_dim > 1024,
        "a width that 32 does not divide": config.d_model % PANEL != 0,
        "an inner width that 32 does not divide": any(w % PANEL for w in widths),
        "more than 1,024 experts": config.n_experts > 1024,
    }
    return next((what for what, is_so in wrong.items() if is_so), None)


class Packer:
    """Lays weights out as products read them: `[N / 32, K / pair, 32, pair]`, pair 2 in bf16 and 1 in fp32."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._threads = threads
        self._functions = {torch.bfloat16: library.pack_bf16, torch.float32: library.pack_fp32}
        for function in self._functions.values():
            function.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_void_p, ctypes.c_int)
            function.restype = None

    def columns(self, w_NK: Tensor, dtype: torch.dtype) -> Tensor:
        """In their order; zeros after the last."""
        n = len(w_NK)
        return self._pack(w_NK, np.r_[np.arange(n), np.full(-n % PANEL, -1)], dtype)

    def gated(self, w_E2FD: Tensor, dtype: torch.dtype) -> Tensor:
        """16 gates, then their 16 values, and so on: a panel gives 16 gated outputs."""
        experts, _, inner, width = w_E2FD.shape
        rows = np.arange(experts * 2 * inner).reshape(experts, 2, inner // LANES, LANES).swapaxes(1, 2)
        return self._pack(w_E2FD.reshape(-1, width), rows.ravel(), dtype)

    def _pack(self, w_NK: Tensor, rows: NDArray[np.int64], dtype: torch.dtype) -> Tensor:
        w_NK = w_NK.detach().to(dtype).contiguous()
        inner, pair = w_NK.shape[1], 2 if dtype == torch.bfloat16 else 1
        out = torch.empty(len(rows) // PANEL, inner // pair, PANEL, pair, dtype=dtype)
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        self._functions[dtype](w_NK.data_ptr(), rows.ctypes.data, len(out), inner, out.data_ptr(), self._threads)
        return out


class NativeDecoder:
    """`Decoder` on C++ kernels."""

    def __init__(
        self, model: Transformer, library: ctypes.CDLL, blocks: int, context: int, threads: int, rows: int
    ) -> None:
        """`context`: longest sequence; `rows`: of a step, at most. The model must be covered (`uncovered`)."""
        config = model.config
        self.config, self.dtype = config, model.compute_dtype
        short = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        self.name = f"native (C++, {short}), batch-invariant"
        self._step = getattr(library, f"step_{short}")
        self._step.argtypes, self._step.restype = (c_void_p, c_void_p), None
        self._kept: list[Tensor] = []  # what the structures point to
        self._width = -(-context // BLOCK_SIZE)
        self._sparse = [n for n in range(config.n_layers) if config.experts_of(n) > 1]
        page = blocks * config.n_kv_heads * BLOCK_SIZE * config.head_dim
        pack = Packer(library, threads)
        layers = (_Layer * config.n_layers)()
        for n, layer in enumerate(model.layers):
            layers[n] = self._layer(cast(Block, layer), page, pack)
        cosine, sine = rotary_table(torch.arange(context), config, torch.float32)
        embedding = model.embedding.to(self.dtype)
        self._layers = layers
        self._model = _Model(
            config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.top_k,
            config.vocab_size, config.window or 0, config.norm_eps, config.clip_qkv or 0.0, config.norm_top_k, threads,
            ctypes.addressof(layers), self._keep(embedding), self._keep(pack.columns(model.head_weight, self.dtype)),
            self._float(model.norm.weight), self._keep(cosine), self._keep(sine),
        )  # fmt: skip
        self._scratch(threads, rows)

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()

    def _float(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(F.pad(tensor.float(), (0, -tensor.numel() % PANEL)))

    def _layer(self, layer: Block, page: int, pack: Packer) -> Structure:
        attention, experts, router = layer.attention, layer.experts, layer.router
        w_qkv = torch.cat((attention.wq, attention.wk, attention.wv))
        b_qkv = None
        if attention.bq is not None and attention.bk is not None and attention.bv is not None:
            b_qkv = torch.cat((attention.bq, attention.bk, attention.bv))
        count, _, inner, _ = experts.w_in.shape
        down = pack.columns(experts.w_out.reshape(-1, inner), self.dtype)
        norms = [None if norm is None else norm.weight for norm in (attention.q_norm, attention.k_norm)]
        return _Layer(
            self._float(layer.attention_norm.weight), self._float(layer.experts_norm.weight),
            self._float(norms[0]), self._float(norms[1]), self._float(b_qkv), self._float(attention.bo),
            self._keep(pack.columns(w_qkv, self.dtype)), self._keep(pack.columns(attention.wo, self.dtype)),
            None if router is None else self._keep(pack.columns(router.weight, torch.float32)),
            self._keep(pack.gated(experts.w_in, self.dtype)), self._keep(down),
            self._keep(torch.zeros(page, dtype=self.dtype)), self._keep(torch.zeros(page, dtype=self.dtype)),
            count, inner,
        )  # fmt: skip

    def _scratch(self, threads: int, rows: int) -> None:
        """Memory for the largest step; the system gives what is touched."""
        c = self.config
        self._rows = rows
        choices, inner = max(c.top_k, 1), max(c.d_ff_of(n) for n in range(c.n_layers))
        qkv = -(-(c.n_heads + 2 * c.n_kv_heads) * c.head_dim // PANEL) * PANEL
        wide, small = torch.float32, self.dtype
        self._chosen = np.zeros((c.n_layers, rows * choices), dtype=np.int32)
        self._memory = {
            "x": torch.empty(rows, c.d_model, dtype=wide),
            "normed": torch.empty(rows, c.d_model, dtype=small),
            "qkv": torch.empty(rows, qkv, dtype=small),
            "attended": torch.empty(rows, max(c.n_heads * c.head_dim, c.d_model), dtype=small),
            "inner": torch.empty(rows * choices, inner, dtype=small),
            "wide": torch.empty(rows, c.d_model, dtype=wide),
            "weights": torch.empty(rows, choices, dtype=wide),
            "out": torch.empty(rows * choices, c.d_model, dtype=wide),
            "scores": torch.empty(threads, 4 * 2 * self._width * BLOCK_SIZE, dtype=wide),
            "place": torch.empty(rows, choices, dtype=torch.int32),
        }
        self._pointers = {name: tensor.data_ptr() for name, tensor in self._memory.items()}

    def step(self, batch: StepBatch) -> tuple[Tensor, NDArray[np.int64]]:
        """See `Decoder.step`. Raises ValueError for a step larger than the scratch: C++ would write past its end."""
        count = len(batch.tokens_T)
        if count > self._rows or int(batch.positions_T.max()) >= self._width * BLOCK_SIZE:
            raise ValueError(
                f"a step of {count} rows up to position {batch.positions_T.max()} is larger than the scratch"
            )
        request_T = np.repeat(np.arange(len(batch.rows), dtype=np.int32), [len(r) for r in batch.rows])
        tables = np.zeros((len(batch.blocks), self._width), dtype=np.int32)
        for row, blocks in zip(tables, batch.blocks, strict=True):
            row[: len(blocks)] = blocks
        logits_RV = torch.empty(len(batch.wanted_R), self.config.vocab_size)
        pointers = {
            name: array.ctypes.data
            for name, array in (
                ("tokens", batch.tokens_T), ("positions", batch.positions_T), ("request", request_T),
                ("tables", tables), ("wanted_rows", batch.wanted_R), ("chosen", self._chosen),
            )
        }  # fmt: skip
        step = _Step(
            rows=count, wanted=len(batch.wanted_R), table_width=self._width, logits=logits_RV.data_ptr(),
            **pointers, **self._pointers,
        )  # fmt: skip
        self._step(byref(self._model), byref(step))
        return logits_RV, self._counts(count)

    def _counts(self, count: int) -> NDArray[np.int64]:
        """Positions of each expert, `[sparse layers, experts]`."""
        layers, experts, k = self.config.n_layers, self.config.n_experts, self.config.top_k
        if not self._sparse:
            return np.zeros((0, 0), dtype=np.int64)
        chosen = self._chosen.reshape(-1)[: layers * count * k].reshape(layers, -1)[self._sparse]
        apart = chosen + experts * np.arange(len(self._sparse), dtype=np.int32)[:, None]
        return np.bincount(apart.ravel(), minlength=len(self._sparse) * experts).reshape(-1, experts)
