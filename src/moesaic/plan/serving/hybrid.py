"""Hybrids of linear and full attention, as shapes that serving can price: a fixed state in place of a growing cache."""

from collections.abc import Mapping

from moesaic.plan.shape import Shape


def hybrid_shape(row: Mapping[str, str]) -> Shape | None:
    """The shape of a row's model if it is a known hybrid.

    Qwen3.5-397B-A17B (model card): 60 layers, every fourth with gated attention, the others with gated DeltaNet (64
    value and 16 key heads of 128). A DeltaNet layer reads and writes its state of 64 x 128 x 128 fp32 values once a
    step, as much as 4,096 tokens of the other layers' cache; it is priced as a window of that length. Its projections
    (117 M weights) are close to those of gated attention (105 M), which all layers are charged.
    """
    if not row["model"].startswith("Qwen3.5-397B"):
        return None
    d, q, kv = 4096, 32 * 256, 2 * 256
    state_bytes, token_bytes = 2 * 64 * 128 * 128 * 4, 2 * kv * 2
    return Shape(
        name=row["model"],
        n_layers=60,
        d_model=d,
        n_heads=32,
        n_kv_heads=2,
        head_dim=256,
        d_ff=1024,
        vocab_size=248_320,
        n_experts=512,
        top_k=10,
        d_expert=1024,
        n_shared=1,
        d_shared=1024,
        attention_extra=d * q,  # the gate of the attention output
        tied=False,
        window=state_bytes // token_bytes,
        windowed_layers=45,
        source="Qwen3.5-397B-A17B model card",
    )
