"""Bytes and FLOPs of one stage on one device: everything about the model and its layout that a pass needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from moesaic.plan.serving.memory import Stage, weight_bytes
from moesaic.plan.serving.replica import Replica

# Which arithmetic the products use: weight-only formats multiply in a wider one.
_COMPUTE = {"bf16": "fp16", "fp16": "fp16", "fp8": "fp8", "int8": "int8", "nvfp4": "nvfp4", "int4": "fp16"}


@dataclass(frozen=True)
class Work:
    """Counts for one device of one stage. `token` means a token of this device's attention copy."""

    layers: int
    sparse: int
    other_bytes: float  # all weights but routed experts; read once in a pass
    expert_bytes: float  # one routed expert of one layer, this device's share
    other_flops: float  # of a token, without attention over the cache
    head_flops: float  # of a token whose logits are wanted
    expert_flops: float  # of one token in one expert of one layer, this device's share
    kv_bytes: float  # cache of one token, layers without a window
    kv_window_bytes: float  # cache of one token, layers with a window
    window: int
    score_flops: float  # of one token against one cached token, decode, layers without a window
    score_window_flops: float
    prompt_score_flops: float  # the same in prefill (a latent is expanded there)
    prompt_score_window_flops: float
    other_width: float  # inner widths on one device
    expert_width: float
    other_compute: str  # precision of arithmetic
    expert_compute: str


def compute_precision(weights: str, tflops: Mapping[str, float]) -> str:
    """The arithmetic that a weight format runs in on a device with these rates (mxfp4: 8 bit where fp4 units exist)."""
    wanted = ("fp8" if "fp4" in tflops else "fp16") if weights == "mxfp4" else _COMPUTE[weights]
    key = "fp4" if wanted == "nvfp4" else wanted
    return wanted if key in tflops else "fp16"


def stage_work(model: Replica, stage: Stage) -> Work:
    """Count one stage."""
    s, tp = model.shape, model.tp
    dense = stage.layers - stage.sparse
    routed = s.n_experts / model.ep * (s.block_parameters(s.d_expert) if s.n_experts > 1 else 0) / model.expert_tp
    expert_bytes = (s.block_parameters(s.d_expert) / model.expert_tp * model.expert_bytes) if stage.sparse else 0.0
    experts_total = stage.sparse * routed * model.expert_bytes
    embedding = s.embedding_parameters * 2.0 / tp if stage.embeds and not (stage.heads and s.tied) else 0.0
    flops = stage.layers * (s.attention_parameters + s.router_parameters * (stage.sparse > 0))
    flops += dense * s.block_parameters(s.d_ff)
    flops += stage.sparse * (s.block_parameters(s.d_shared) if s.n_shared else 0)
    windowed = stage.layers * s.windowed_layers / s.n_layers if s.window else 0.0
    full = stage.layers - windowed
    heads = s.n_heads / tp
    if a := s.latent:
        score, prompt = 2 * heads * (2 * a.kv_rank + a.rope_dim), 2 * heads * (a.nope_dim + a.rope_dim + a.value_dim)
    else:
        score = prompt = 4 * heads * s.head_dim
    rates = model.device.tflops
    sparse_model = s.n_experts > 1
    four_bit = model.other_bytes == 2.0
    other = "fp16" if four_bit else compute_precision(model.weights, rates)
    width = s.d_ff / tp if dense else s.n_heads * s.head_dim / tp
    return Work(
        layers=stage.layers,
        sparse=stage.sparse,
        other_bytes=weight_bytes(model, stage) - experts_total - embedding,
        expert_bytes=expert_bytes,
        other_flops=2 * flops / tp,
        head_flops=2 * s.vocab_size * s.d_model / tp if stage.heads else 0.0,
        expert_flops=2 * s.block_parameters(s.d_expert) / model.expert_tp if stage.sparse else 0.0,
        kv_bytes=full * model.kv_bytes_per_token_layer,
        kv_window_bytes=windowed * model.kv_bytes_per_token_layer,
        window=s.window or 0,
        score_flops=full * score,
        score_window_flops=windowed * score,
        prompt_score_flops=full * prompt,
        prompt_score_window_flops=windowed * prompt,
        other_width=width,
        expert_width=s.d_expert / model.expert_tp if sparse_model else width,
        other_compute=other,
        expert_compute=compute_precision(model.weights, rates),
    )
