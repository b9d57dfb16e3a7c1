"""FLOPs per token under every convention in use, side by side: most quarrels about utilisation are about this.

A multiplication with an addition is 2 FLOP. Counts are averages over a sequence of `seq_len` tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moesaic.errors import PlanError
from moesaic.plan.shape import Shape

Recompute = Literal["none", "selective", "full"]


def visible_tokens(seq_len: int, window: int | None = None, causal: bool = True) -> float:
    """Keys that a query meets, on average: seq_len / 2 when causal, seq_len when scores above the diagonal count too.

    Causal queries count their own key half: that is what makes s / 2 exact. A window w < seq_len leaves the mean of
    min(i + 1, w) - 1/2 over positions i, or w when masked scores count.
    """
    if seq_len < 1:
        raise PlanError(f"a sequence of {seq_len} tokens; give a positive length")
    seen = seq_len if window is None else min(window, seq_len)
    return seen - seen * (seen - 1) / (2 * seq_len) - 0.5 if causal else float(seen)


@dataclass(frozen=True)
class ForwardFlops:
    """FLOP of one token's forward pass, by place, over all layers."""

    attention: float  # projections
    scores: float  # queries with keys, weights with values
    feed_forward: float  # dense blocks, routed and shared experts
    router: float
    head: float  # logits

    @property
    def total(self) -> float:
        """The whole forward pass."""
        return self.attention + self.scores + self.feed_forward + self.router + self.head


def forward_parts(shape: Shape, seq_len: int, causal: bool = True) -> ForwardFlops:
    """Matrix products of one token's forward pass; not norms, biases, softmax and the embedding's lookup."""
    dense = shape.n_layers - shape.sparse_layers
    widths = dense * shape.d_ff + shape.sparse_layers * (shape.top_k * shape.d_expert + shape.d_shared)
    full = visible_tokens(seq_len, None, causal) * (shape.n_layers - shape.windowed_layers)
    local = visible_tokens(seq_len, shape.window, causal) * shape.windowed_layers
    return ForwardFlops(
        attention=2.0 * shape.n_layers * attention_matrices(shape),
        scores=2.0 * score_width(shape) * (full + local),
        feed_forward=2.0 * shape.ffn_matrices * shape.d_model * widths,
        router=2.0 * shape.sparse_layers * shape.d_model * shape.n_experts if shape.n_experts > 1 else 0.0,
        head=2.0 * shape.vocab_size * shape.d_model,
    )


def attention_matrices(shape: Shape) -> int:
    """Weights of one layer's attention that multiply: `attention_parameters` without biases, norms and sinks."""
    if a := shape.latent:
        norms = (a.q_rank or 0) + a.kv_rank
        return shape.attention_parameters - shape.attention_extra - norms
    return 2 * shape.d_model * shape.head_dim * (shape.n_heads + shape.n_kv_heads)


def score_width(shape: Shape) -> int:
    """Multiplications of one query with one key and its value, over the heads of a layer.

    Latent attention is counted as it is trained, with keys and values expanded: nope + rope for the key, the value's
    width for the value.
    """
    if a := shape.latent:
        return shape.n_heads * (a.nope_dim + a.rope_dim + a.value_dim)
    return 2 * shape.n_heads * shape.head_dim


def forward_flops(shape: Shape, seq_len: int, causal: bool = True) -> float:
    """FLOP of one token's forward pass: every matrix product, scores included."""
    return forward_parts(shape, seq_len, causal).total


def training_flops(shape: Shape, seq_len: int, causal: bool = True, recompute: Recompute = "none") -> float:
    """FLOP of one token's training: forward once, backward twice, and what is computed again.

    `full` computes all layers again (not the head), `selective` only the scores (Korthikanti et al. 2022,
    arXiv:2205.05198, sec. 5). With `recompute` this is the numerator of HFU, without it that of MFU. With
    causal = False it is Narayanan et al. 2021 (arXiv:2104.04473, eq. 3): 96 B s l h^2 (1 + s / 6h + V / 16lh) a batch
    under full recompute, 72 in place of 96 (and V / 12lh) without.
    """
    parts = forward_parts(shape, seq_len, causal)
    again = {"none": 0.0, "selective": parts.scores, "full": parts.total - parts.head}
    if recompute not in again:
        raise PlanError(f"recompute '{recompute}'; use one of {', '.join(again)}")
    return 3 * parts.total + again[recompute]


def parameter_flops(shape: Shape, embeddings: bool = True) -> float:
    """2 N: FLOP of one token's forward pass by the rule of thumb, N = active parameters, embedding and head included.

    Without embeddings as Kaplan et al. 2020 (arXiv:2001.08361, sec. 2.1) count N. Training is three times as much.
    """
    left_out = 0 if embeddings else shape.embedding_parameters + shape.head_parameters
    return 2.0 * (shape.active_parameters - left_out)


def palm_training_flops(shape: Shape, seq_len: int) -> float:
    """6 N + 12 L H Q T: PaLM's FLOP per token (arXiv:2204.02311, app. B), N = active parameters, full attention."""
    return 6.0 * shape.active_parameters + 12.0 * shape.n_layers * shape.n_heads * shape.head_dim * seq_len


@dataclass(frozen=True)
class Convention:
    """FLOP per token by one way of counting."""

    forward: float
    training: float
    counts: str


def conventions(shape: Shape, seq_len: int) -> Mapping[str, Convention]:
    """Every convention by name, for one token in a sequence of `seq_len`; without recompute unless named."""
    two_n, kaplan = parameter_flops(shape), parameter_flops(shape, embeddings=False)
    palm = palm_training_flops(shape, seq_len)
    causal, full = forward_flops(shape, seq_len), forward_flops(shape, seq_len, causal=False)

    def hfu(recompute: Recompute, causal: bool = True) -> float:
        return training_flops(shape, seq_len, causal, recompute)

    return {
        "6N": Convention(two_n, 3 * two_n, "active parameters, embeddings too; no scores"),
        "6N_no_embeddings": Convention(
            kaplan, 3 * kaplan, "active parameters without embedding and head (Kaplan 2020)"
        ),
        "palm": Convention(palm / 3, palm, "6N + 12 L H Q T, all scores (PaLM app. B)"),
        "causal": Convention(causal, 3 * causal, "matrix products; scores below the diagonal, windows kept"),
        "full": Convention(full, 3 * full, "matrix products; all scores (Narayanan 2021, 72 B s l h^2)"),
        "causal_selective": Convention(causal, hfu("selective"), "causal, scores computed again: HFU"),
        "causal_full": Convention(causal, hfu("full"), "causal, layers computed again: HFU"),
        "narayanan": Convention(full, hfu("full", False), "all scores, layers computed again (eq. 3, 96 B s l h^2)"),
    }


def utilisation(flops_per_token: float, tokens_per_s: float, devices: int, peak_flops: float) -> float:
    """Share of the peak: MFU for model FLOPs, HFU when they include recompute. `peak_flops`: FLOP/s of one device."""
    if min(flops_per_token, tokens_per_s, devices, peak_flops) <= 0:
        raise PlanError("utilisation of nothing: FLOPs per token, tokens per second, devices and peak must be positive")
    return flops_per_token * tokens_per_s / (devices * peak_flops)
