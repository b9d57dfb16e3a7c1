"""The decoder: embedding, blocks, final norm, head. No distributed code; parallelism is applied from outside.

Legend: B sequences, S positions, D model width, V vocabulary.
"""

import fnmatch
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.errors import ModelError
from moesaic.model.attend import Visibility
from moesaic.model.attention import Attention
from moesaic.model.block import Block
from moesaic.model.cache import KeyValueCache
from moesaic.model.experts import Experts
from moesaic.model.kernels import RowKernels
from moesaic.model.norm import RMSNorm
from moesaic.model.rotary import rotary_table
from moesaic.model.router import RouterStats
from moesaic.recipe import Model


class Transformer(nn.Module):
    """A decoder-only sparse mixture-of-experts transformer.

    Parameters are created on the current default device (use `torch.device("meta")` for shapes only) and are
    uninitialised until `initialise` or a weight file fills them. Products run in `compute_dtype`; the residual
    stream, norms and router stay fp32 when the weights are fp32.
    """

    def __init__(self, config: Model, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.compute_dtype = compute_dtype or self.embedding.dtype
        self.kernels = RowKernels()

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, d_model]`: the output head, or the embedding when tied."""
        return self.embedding if self.head is None else self.head

    def use_kernels(self, kernels: RowKernels) -> None:
        """Compute what lies between the matrix products with `kernels` from now on."""
        self.kernels = kernels
        for module in self.modules():
            if isinstance(module, RMSNorm | Attention | Experts):
                module.kernels = kernels

    def extend(self, context: int, rope_theta: float | None = None) -> None:
        """Raise the longest sequence and, if given, the rotary base; weights stay. Raises ModelError."""
        self.config = extended(self.config, context, rope_theta)

    def hidden(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KeyValueCache | None = None,
        collect_stats: bool = False,
        length: int | None = None,
    ) -> tuple[Tensor, list[RouterStats]]:
        """Final hidden states `[batch, seq, d_model]` in compute dtype, and router statistics per layer if asked.

        `documents_BS` keeps packed documents apart (-1 is padding); without it the row is one document.
        With a cache the tokens continue it. `length` is that of the whole sequence when only a part comes now, for
        dynamic rotary scaling. Raises ModelError when the cache is full.
        """
        batch, seq = tokens_BS.shape
        start = 0 if cache is None else cache.reserve(seq)
        if positions_BS is None:
            positions_BS = torch.arange(start, start + seq, device=tokens_BS.device).expand(batch, seq)
        rotary = rotary_table(positions_BS, self.config, self.compute_dtype, length)
        sight = Visibility.of(tokens_BS, documents_BS, self.config.window) if cache is None else None
        real_BS = None
        if collect_stats:
            real_BS = torch.ones_like(tokens_BS, dtype=torch.bool) if documents_BS is None else documents_BS >= 0
        x_BSD = F.embedding(tokens_BS, self.embedding)
        all_stats = []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            x_BSD, stats = layer(x_BSD, rotary, sight, real_BS, self.compute_dtype, layer_cache, start)
            if stats is not None:
                all_stats.append(stats)
        if cache is not None:
            cache.advance(seq)
        return self.norm(x_BSD, self.compute_dtype), all_stats

    def forward(
        self,
        tokens_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits `[batch, seq, vocab]` in compute dtype."""
        hidden_BSD, _ = self.hidden(tokens_BS, positions_BS, documents_BS, cache)
        return F.linear(hidden_BSD, self.head_weight.to(self.compute_dtype))


def extended(config: Model, context: int, rope_theta: float | None = None) -> Model:
    """`config` for sequences of at least `context` and, if given, another rotary base. Raises ModelError."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic" and context > config.context:
        raise ModelError(
            f"a context of {context} tokens: dynamic rotary scaling depends on the length of a prompt, no training "
            f"beyond {config.context}; use a shorter seq_len"
        )
    update = {"context": max(context, config.context), "rope_theta": rope_theta or config.rope_theta}
    return config.model_copy(update=update)


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> None:
    """Fill all weights from `seed`."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(model.config, name, parameter.shape, seed))


def initial_value(config: Model, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """First value of the weight `name`, fp32 on the CPU.

    Each tensor has its own generator, keyed by its name in the whole model, so that a process which holds a part of
    the model draws the very weights of the whole.
    """
    last = name.split(".")[-1]
    if name.endswith("norm.weight"):
        return torch.ones(*shape, device="cpu")
    if last.startswith("b"):
        return torch.zeros(*shape, device="cpu")
    std = config.init_std / math.sqrt(2 * config.n_layers) if last in ("wo", "w_out") else config.init_std
    generator = torch.Generator("cpu").manual_seed(_key(seed, name))
    return torch.empty(*shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def _key(seed: int, name: str) -> int:
    """A 63-bit generator seed from the run's seed and a tensor's name (FNV-1a: stable across Python versions)."""
    value = 0xCBF29CE484222325
    for byte in f"{seed}/{name}".encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value >> 1


def select_trainable(model: nn.Module, globs: Sequence[str]) -> list[str]:
    """Freeze everything but the parameters that match one of `globs`; return their names. Raises ModelError."""
    chosen = matching([name for name, _ in model.named_parameters()], globs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def matching(names: Sequence[str], globs: Sequence[str]) -> list[str]:
    """The names of weights that match one of `globs`, in order. Raises ModelError when none does."""
    chosen = [n for n in names if any(fnmatch.fnmatch(n, g) for g in globs)]
    if not chosen:
        raise ModelError(f"trainable = {list(globs)} matches no parameter; names look like {list(names[:3])}")
    return chosen
