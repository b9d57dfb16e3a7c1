"""The architecture that the planner prices: every number that sizes and speeds follow from, and no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesaic.recipe import Model


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, sec. 2.1). Widths in features."""

    q_rank: int | None  # None: queries are projected directly
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer. Layers are sparse except `dense_layers` of them; n_experts = 1 is dense."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int  # inner width of a dense feed-forward block
    vocab_size: int
    n_experts: int = 1
    top_k: int = 1
    d_expert: int = 0  # inner width of one routed expert
    n_shared: int = 0  # shared experts that every token visits
    d_shared: int = 0  # inner width of all shared experts of a layer together
    dense_layers: int = 0  # layers without experts in a sparse model; they come first
    ffn_matrices: int = 3  # 3: gated (SwiGLU), 2: plain (GELU)
    tied: bool = True
    positions: int = 0  # learned positions (GPT-2, GPT-3)
    biases: bool = False  # in every projection of attention and feed-forward blocks (GPT family)
    ffn_biases: bool = False  # in feed-forward blocks, attention having none or some (`attention_extra`)
    norms: int = 2  # norms of width d_model in one layer: 1 where attention and feed-forward share it, 4 in Gemma 2
    norm_values: int = 1  # learned values per feature of a norm: 1 RMSNorm, 2 LayerNorm, 0 none
    window: int | None = None  # latest tokens that `windowed_layers` layers see
    windowed_layers: int = 0
    latent: LatentAttention | None = None
    context: int = 8192
    parallel_block: bool = False  # attention and feed-forward side by side (PaLM)
    qk_norm: int = 0  # weights of the norms of queries and keys in one layer
    attention_extra: int = 0  # further weights of one layer's attention: some biases, sinks, relative positions
    router_extra: int = 0  # further weights of one router: its biases
    dense_at: tuple[int, ...] = ()  # where the dense layers stand when they do not come first
    extra: int = 0  # weights outside the layers that nothing above counts: norm of the embedding, bias of the head
    source: str = ""

    @property
    def sparse_layers(self) -> int:
        """Layers with a router."""
        return self.n_layers - self.dense_layers if self.n_experts > 1 else 0

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has a router."""
        dense = layer in self.dense_at if self.dense_at else layer < self.dense_layers
        return self.n_experts > 1 and not dense

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention projections of one layer."""
        if a := self.latent:
            q_width = self.n_heads * (a.nope_dim + a.rope_dim)
            q = self.d_model * q_width if a.q_rank is None else a.q_rank * (self.d_model + q_width + 1)
            kv = self.d_model * (a.kv_rank + a.rope_dim) + a.kv_rank * (self.n_heads * (a.nope_dim + a.value_dim) + 1)
            return q + kv + self.n_heads * a.value_dim * self.d_model + self.attention_extra
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        biases = q + 2 * kv + self.d_model if self.biases else 0
        return 2 * self.d_model * (q + kv) + self.qk_norm + biases + self.attention_extra

    @property
    def norm_parameters(self) -> int:
        """Weights of the norms of one layer."""
        return self.norms * self.d_model * self.norm_values

    def block_parameters(self, width: int) -> int:
        """Weights of one feed-forward block of inner width `width`."""
        biases = (self.ffn_matrices - 1) * width + self.d_model if self.biases or self.ffn_biases else 0
        return self.ffn_matrices * self.d_model * width + biases

    @property
    def router_parameters(self) -> int:
        """Weights of one router."""
        return self.d_model * self.n_experts + self.router_extra if self.n_experts > 1 else 0

    @property
    def dense_layer_parameters(self) -> int:
        """Weights of one layer without experts."""
        return self.attention_parameters + self.norm_parameters + self.block_parameters(self.d_ff)

    def sparse_layer_parameters(self, experts: int | None = None) -> int:
        """Weights of one layer with experts, counting `experts` of them (all when None)."""
        routed = (self.n_experts if experts is None else experts) * self.block_parameters(self.d_expert)
        shared = self.block_parameters(self.d_shared) if self.n_shared else 0
        return self.attention_parameters + self.norm_parameters + self.router_parameters + routed + shared

    @property
    def embedding_parameters(self) -> int:
        """One embedding matrix with its positions; the head is as large again without the positions."""
        return (self.vocab_size + self.positions) * self.d_model

    @property
    def head_parameters(self) -> int:
        """The output head as a matrix of its own; 0 when it is the embedding."""
        return 0 if self.tied else self.vocab_size * self.d_model

    def parameters(self, experts: int | None = None) -> int:
        """All parameters, or those of a model that holds only `experts` experts a layer."""
        final_norm = self.d_model * self.norm_values
        dense = (self.n_layers - self.sparse_layers) * self.dense_layer_parameters
        sparse = self.sparse_layers * self.sparse_layer_parameters(experts)
        return self.embedding_parameters + self.head_parameters + self.extra + final_norm + dense + sparse

    @property
    def total_parameters(self) -> int:
        """Every parameter, embedding included."""
        return self.parameters()

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: `top_k` routed experts and everything else."""
        return self.parameters(self.top_k)

    @property
    def kv_values_per_token(self) -> int:
        """Values of key/value cache for one token in one layer (MLA: the latent and the rotary key)."""
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.n_kv_heads * self.head_dim

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> float:
        """Bytes of key/value cache for one token over all layers, before any replication."""
        return self.n_layers * self.kv_values_per_token * bytes_per_value


def shape_of(model: Model, name: str) -> Shape:
    """The shape of a recipe's model. Its parameter count equals `model.parameters()`."""
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    qk = {None: 0, "head": 2 * model.head_dim, "all": q + kv}
    sparse = model.n_experts > 1
    return Shape(
        name=name,
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        d_ff=(model.dense_d_ff or model.d_ff) if sparse else model.d_ff,
        vocab_size=model.vocab_size,
        n_experts=model.n_experts,
        top_k=model.top_k if sparse else 1,
        d_expert=model.d_ff if sparse else 0,
        dense_layers=len(set(model.dense_layers)) if sparse else 0,
        dense_at=tuple(sorted(set(model.dense_layers))) if sparse else (),
        tied=model.tie_embeddings,
        window=model.window,
        windowed_layers=model.n_layers if model.window else 0,
        context=model.context,
        qk_norm=qk[model.qk_norm],
        attention_extra=q + 2 * kv + model.d_model if model.attention_bias else 0,
        ffn_biases=model.mlp_bias,
        source="recipe",
    )
