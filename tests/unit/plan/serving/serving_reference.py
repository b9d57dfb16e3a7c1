"""A decode step in plain scalars, from the formulas of docs/plan-serve.md: the vectorised path must match it."""

import math
from statistics import NormalDist

from moesaic.plan.serving.memory import Stage, weight_bytes
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.replica import Replica


def soft_max(a: float, b: float, sharp: float) -> float:
    """(a^p + b^p)^(1/p)."""
    return 0.0 if max(a, b) == 0 else max(a, b) * sum((x / max(a, b)) ** sharp for x in (a, b)) ** (1 / sharp)


def decode_seconds(m: Replica, stage: Stage, c: Profile, engine_name: str, sequences: float, context: float) -> float:
    """One decode step of one stage, 16-bit weights, no latent attention, no window."""
    s, d, engine = m.shape, m.device, c.engine(engine_name)
    g = c.generation(d.generation)
    memory = d.memory_tb_s * 1e12 * g.hbm
    peak = d.peak("fp16")
    dense = stage.layers - stage.sparse
    expert = s.block_parameters(s.d_expert) / m.expert_tp if stage.sparse else 0.0

    other_bytes = weight_bytes(m, stage) - stage.sparse * s.n_experts / m.ep * expert * 2
    if stage.embeds and not (stage.heads and s.tied):
        other_bytes -= s.embedding_parameters * 2 / m.tp
    other_flops = 2 / m.tp * (
        stage.layers * (s.attention_parameters + (s.router_parameters if stage.sparse else 0))
        + dense * s.block_parameters(s.d_ff)
        + stage.sparse * (s.block_parameters(s.d_shared) if s.n_shared else 0)
    )  # fmt: skip
    width = s.d_ff / m.tp if dense else s.n_heads * s.head_dim / m.tp
    rate = peak * g.gemm * width / (width + c.width)
    head = 2 * s.vocab_size * s.d_model / m.tp if stage.heads else 0.0
    seconds = soft_max(other_bytes / memory, sequences * (other_flops + head) / rate, c.sharp)

    if stage.sparse:
        tokens = sequences * m.dp
        visited = 1 - (1 - s.top_k / s.n_experts) ** tokens
        read = s.n_experts / m.ep * visited
        load = s.top_k * tokens / m.ep
        if m.ep > 1:
            highest = NormalDist().inv_cdf((m.ep - 0.375) / (m.ep + 0.25))
            above = highest * math.sqrt(read * (1 - visited))
            read = min(read + above, s.n_experts / m.ep, max(s.top_k * tokens, read))
            load = min(load + highest * math.sqrt(load), s.top_k * tokens)
        width = s.d_expert / m.expert_tp
        rate = peak * g.gemm * width / (width + c.width) * c.expert_gemm
        bytes_s = stage.sparse * read * expert * 2 / (memory * c.expert_hbm)
        seconds += soft_max(bytes_s, stage.sparse * load * 2 * expert / rate, c.sharp)

    cache = stage.layers * 2 * max(1, math.ceil(s.n_kv_heads / m.tp)) * s.head_dim * 2
    again = 1 + engine.regroup * (max(1.0, s.n_heads / m.tp / max(1, math.ceil(s.n_kv_heads / m.tp))) - 1)
    scores = stage.layers * 4 * s.n_heads / m.tp * s.head_dim
    bytes_s = again * sequences * context * cache / (memory * c.kv)
    seconds += soft_max(bytes_s, sequences * context * scores / (peak * c.attention), c.sharp)

    alpha = g.alpha_s * engine.comm
    if m.tp > 1:
        link = (d.domain_gb_s if m.tp <= d.domain else d.network_gb_s) * 1e9 * c.link
        ring = 2 * (m.tp - 1) / m.tp * sequences * s.d_model * 2 / link
        seconds += 2 * stage.layers * (alpha * math.log2(m.tp) + ring)
    if m.dp > 1 and stage.sparse:
        ranks = m.tp * m.dp
        link = (d.domain_gb_s if ranks <= d.domain else d.network_gb_s) * 1e9 * c.link
        sent = sequences * min(s.top_k, m.ep) * s.d_model * (1 - 1 / ranks) * 4  # 16 bit there, 16 bit back
        seconds += stage.sparse * (2 * alpha * math.log2(ranks) + sent / link)

    seconds += engine.overhead * (stage.layers * c.layer_s + stage.sparse * c.sparse_s)
    return seconds + (c.step_s + sequences * m.dp * c.sequence_s if stage.heads else 0.0)
