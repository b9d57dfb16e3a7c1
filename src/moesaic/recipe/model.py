"""The decoder: its shape, and the numbers that follow from the shape alone."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part
from moesaic.recipe.rope import RopeScaling


class Model(Part):
    """A decoder-only transformer whose feed-forward blocks are mixtures of experts (Mixtral-shaped)."""

    vocab_size: PositiveInt
    """Size of the vocabulary, special tokens included. | tokens | the tokenizer changes."""
    d_model: PositiveInt
    """Width of the residual stream. | features | the parameter budget changes."""
    n_layers: PositiveInt
    """Number of decoder layers. | layers | the parameter budget changes."""
    n_heads: PositiveInt
    """Query heads. `n_heads * head_dim` need not be `d_model`. | heads | attention should get more or fewer parameters."""
    head_dim: PositiveInt = 64
    """Width of one head; even, because RoPE turns pairs. | features | rarely: kernels like 64 and 128."""
    n_kv_heads: PositiveInt = 1
    """Key/value heads: 1 is multi-query attention, `n_heads` is multi-head. | heads | cache size matters less than quality."""
    d_ff: PositiveInt
    """Inner width of one SwiGLU expert. | features | the parameter budget changes."""
    n_experts: PositiveInt = 16
    """Experts per layer; 1 is a dense model. | experts | capacity should grow at the same compute per token."""
    top_k: PositiveInt = 2
    """Experts that each token visits. | experts | compute per token may grow."""
    norm_top_k: bool = True
    """Weights of the chosen experts sum to one; else they keep the router's probabilities (OLMoE). | none | imported weights ask for it."""
    dense_layers: tuple[NonNegativeInt, ...] = ()
    """Layers with one dense block in place of experts. | layers | only some layers of a dense model were upcycled."""
    dense_d_ff: PositiveInt | None = None
    """Inner width of the dense layers; none is `d_ff`. | features | imported weights ask for it."""
    context: PositiveInt = 2048
    """Longest sequence the model is meant for; an `extend` stage raises it. | tokens | prompts get longer."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021). | none | the context grows by more than 2x."""
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched beyond the length of pre-training. | table | imported weights ask for it."""
    window: PositiveInt | None = None
    """Latest tokens that a token sees, itself included (sliding window); none is all. | tokens | imported weights ask for it."""
    qk_norm: Literal["head", "all"] | None = None
    """RMSNorm of queries and keys before rotation: over each head (Qwen3) or over all heads together (OLMoE). | none | attention logits grow without bound."""
    clip_qkv: PositiveFloat | None = None
    """Queries, keys and values are clamped to this magnitude (OLMoE). | none | imported weights ask for it."""
    attention_bias: bool = False
    """Biases in the query, key, value and output projections. | none | imported weights have them."""
    mlp_bias: bool = False
    """Biases in the feed-forward block of a dense model. | none | imported weights have them."""
    tie_embeddings: bool = True
    """Use the embedding matrix as the output head too. | none | a large model with a small vocabulary."""
    norm_eps: PositiveFloat = 1e-5
    """Added under the root of RMSNorm. | none | imported weights ask for another."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights; projections into the residual stream get 1/sqrt(2 n_layers) of it. | none | training diverges at the start."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (Fedus et al. 2021, eq. 4). | none | experts starve (raise) or the loss suffers (lower)."""
    z_weight: float = 0.001
    """Weight of the router z-loss (Zoph et al. 2022, eq. 5). | none | router logits grow without bound (raise)."""
    balance_scope: Literal["sequence", "previous_batch"] = "sequence"
    """Where load is counted: in each sequence, or in the whole previous global batch. Neither depends on the layout. | none | sequences are short or of one topic."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}; "
                f"change n_kv_heads to a divisor of {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd, RoPE turns pairs; use {self.head_dim + 1}")
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k = {self.top_k} is more than n_experts = {self.n_experts}; lower top_k")
        if outside := [n for n in self.dense_layers if n >= self.n_layers]:
            raise ValueError(f"dense_layers names layer {outside[0]}, there are layers 0 to {self.n_layers - 1}")
        if self.mlp_bias and self.n_experts > 1:
            raise ValueError("mlp_bias = true is computed in dense models only; set n_experts = 1 or mlp_bias = false")
        return self

    def experts_of(self, layer: int) -> int:
        """Experts of one layer; 1 is a dense layer."""
        return 1 if layer in self.dense_layers else self.n_experts

    def d_ff_of(self, layer: int) -> int:
        """Inner width of one expert of a layer, in features."""
        return self.dense_d_ff or self.d_ff if layer in self.dense_layers else self.d_ff

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Layers with a router."""
        return tuple(n for n in range(self.n_layers) if self.experts_of(n) > 1)

    @property
    def attention_parameters(self) -> int:
        """Weights of attention in one layer (query, key, value, output, and what stands between them)."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        norms = {None: 0, "head": 2 * self.head_dim, "all": q + kv}[self.qk_norm]
        biases = q + 2 * kv + self.d_model if self.attention_bias else 0
        return 2 * self.d_model * (q + kv) + norms + biases

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert in one layer (gate, up, down)."""
        return 3 * self.d_model * self.d_ff

    @property
    def embedding_parameters(self) -> int:
        """Embedding and output head together; a tied head counts once."""
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)

    @property
    def router_parameters(self) -> int:
        """Weights of the router in one layer; a dense model has none."""
        return self.d_model * self.n_experts if self.n_experts > 1 else 0

    def parameters(self, experts: int | None = None) -> int:
        """All parameters, or those of a model that holds only `experts` experts a layer."""
        total = self.embedding_parameters + (2 * self.n_layers + 1) * self.d_model
        for layer in range(self.n_layers):
            here = self.experts_of(layer)
            held = min(here, self.n_experts if experts is None else experts)
            biases = 2 * self.d_ff_of(layer) + self.d_model if self.mlp_bias else 0
            total += self.attention_parameters + (self.router_parameters if here > 1 else 0)
            total += held * (3 * self.d_model * self.d_ff_of(layer) + biases)
        return total

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: `top_k` experts a layer and everything else."""
        return self.parameters(self.top_k)

    @property
    def summary(self) -> str:
        """Size and shape in a few words, for people."""
        experts = (
            f"{self.n_experts} experts in {len(self.sparse_layers)} of {self.n_layers} layers, {self.top_k} chosen"
        )
        return (
            f"{self.parameters() / 1e6:,.1f} M parameters, {self.active_parameters / 1e6:,.1f} M active per token; "
            f"{experts if self.sparse_layers else 'dense'}; context {self.context:,} tokens"
        )

    @property
    def forward_flops_per_token(self) -> int:
        """2 x active parameters, without attention scores. FLOP per token, forward only."""
        return 2 * self.active_parameters

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of key/value cache for one token, over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * bytes_per_value
