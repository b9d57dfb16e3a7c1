"""The decoder: its shape, and the numbers that follow from the shape alone."""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part


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
    context: PositiveInt = 2048
    """Longest sequence the model is meant for; an `extend` stage raises it. | tokens | prompts get longer."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021). | none | the context grows by more than 2x."""
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
        for name in ("d_model", "d_ff"):
            value = getattr(self, name)
            if value % 8:
                raise ValueError(
                    f"{name} = {value} is not a multiple of 8, which grouped matrix multiplication needs "
                    f"in 16 bit; use {-(-value // 8) * 8}"
                )
        return self

    @property
    def attention_parameters(self) -> int:
        """Weights of attention in one layer (query, key, value, output)."""
        return self.d_model * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)

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
        n = self.n_experts if experts is None else experts
        layer = self.attention_parameters + self.router_parameters + n * self.expert_parameters
        norms = (2 * self.n_layers + 1) * self.d_model
        return self.embedding_parameters + self.n_layers * layer + norms

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: `top_k` experts a layer and everything else."""
        return self.parameters(self.top_k)

    @property
    def forward_flops_per_token(self) -> int:
        """2 x active parameters, without attention scores. FLOP per token, forward only."""
        return 2 * self.active_parameters

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of key/value cache for one token, over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * bytes_per_value
