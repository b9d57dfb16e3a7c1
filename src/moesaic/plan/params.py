"""`plan params`: what a model holds and what a token costs, with its dense twin and GPT-3 beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moesaic.plan.flops import conventions, forward_parts, parameter_flops
from moesaic.plan.quantity import human
from moesaic.plan.routing import tokens_per_expert
from moesaic.plan.serving.replica import WEIGHT_BYTES
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import known_shapes
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.stages import dense_twin, stage_loads

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


BYTES = {"fp32": 4.0} | {name: WEIGHT_BYTES[name] for name in ("bf16", "fp8", "int8", "nvfp4")}  # with scales


def params_sheet(shape: Shape, seq_len: int | None = None, pp: int = 1, recipe: Recipe | None = None) -> Sheet:
    """The sheet of `plan params`: parameters, stages, FLOPs under every convention, cache, bytes, batches.

    `seq_len` defaults to the model's context; `recipe` adds its batches. Raises PlanError.
    """
    seq_len = seq_len or shape.context
    sheet = Sheet(f"{shape.name}: {human(shape.total_parameters)} parameters, {_active(shape)}")
    _parameters(sheet, shape)
    _stages(sheet, shape, pp)
    _flops(sheet, shape, seq_len)
    _memory(sheet, shape, seq_len)
    _beside(sheet, shape)
    if recipe is not None:
        _batches(sheet, shape, recipe)
    if "is unknown" in shape.source:
        sheet.note(f"{shape.source}: check the total against the model's card")
    return sheet


def _active(shape: Shape) -> str:
    return "dense" if shape.n_experts == 1 else f"{human(shape.active_parameters)} active"


def _parameters(sheet: Sheet, shape: Shape) -> None:
    section, sparse = "Parameters", shape.sparse_layers
    facts: dict[str, Value] = {"layers": shape.n_layers, "sparse layers": sparse, "d_model": shape.d_model}
    sheet.add(
        section,
        "total_parameters",
        "total",
        shape.total_parameters,
        "",
        "layers x (attention + norms + router + experts x expert) + embedding + head + last norm",
        **facts,
        experts=shape.n_experts,
        vocabulary=shape.vocab_size,
    )
    sheet.add(
        section,
        "active_parameters",
        "active for one token",
        shape.active_parameters,
        "",
        "as the total, with top_k experts a layer in place of all",
        top_k=shape.top_k,
        experts=shape.n_experts,
    )
    if sparse:
        sheet.add(
            section,
            "per_expert_parameters",
            "one routed expert, over all layers",
            sparse * shape.block_parameters(shape.d_expert),
            "",
            "sparse layers x matrices x d_model x d_expert",
            **facts,
            matrices=shape.ffn_matrices,
            d_expert=shape.d_expert,
        )
        sheet.add(
            section,
            "router_parameters",
            "routers",
            sparse * shape.router_parameters,
            "",
            "sparse layers x d_model x experts",
            **facts,
            experts=shape.n_experts,
        )
    if shape.n_shared:
        sheet.add(
            section,
            "shared_expert_parameters",
            "shared experts",
            sparse * shape.block_parameters(shape.d_shared),
            "",
            "sparse layers x matrices x d_model x d_shared",
            **facts,
            d_shared=shape.d_shared,
        )
    if dense := shape.n_layers - sparse:
        sheet.add(
            section,
            "dense_block_parameters",
            "feed-forward blocks without experts",
            dense * shape.block_parameters(shape.d_ff),
            "",
            "dense layers x matrices x d_model x d_ff",
            matrices=shape.ffn_matrices,
            d_ff=shape.d_ff,
        )
    form = "layers x latent projections" if shape.latent else "layers x 2 d_model head_dim (heads + kv_heads)"
    sheet.add(
        section,
        "attention_parameters",
        "attention, shared by all tokens",
        shape.n_layers * shape.attention_parameters,
        "",
        f"{form} + norms and biases inside",
        **facts,
        heads=shape.n_heads,
        kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
    )
    sheet.add(
        section,
        "embedding_parameters",
        "embedding" + (" (and head: tied)" if shape.tied else ""),
        shape.embedding_parameters,
        "",
        "(vocabulary + learned positions) x d_model",
        vocabulary=shape.vocab_size,
        positions=shape.positions,
        d_model=shape.d_model,
    )
    sheet.add(
        section,
        "head_parameters",
        "output head of its own",
        shape.head_parameters,
        "",
        "vocabulary x d_model, 0 when tied",
        vocabulary=shape.vocab_size,
        d_model=shape.d_model,
    )


def _stages(sheet: Sheet, shape: Shape, pp: int) -> None:
    loads = stage_loads(shape, pp)
    heaviest = max(range(pp), key=lambda n: loads[n].parameters)
    mean = sum(load.parameters for load in loads) / pp
    facts: dict[str, Value] = {"pp": pp, "layers of it": loads[heaviest].layers}
    section = f"Pipeline of {pp}"
    sheet.add(section, "pipeline_stages", "stages", pp, "", "the recipe's layout, or --pp")
    sheet.add(
        section,
        "heaviest_stage_parameters",
        f"heaviest stage ({heaviest + 1} of {pp}, {loads[heaviest].layers} layers)",
        loads[heaviest].parameters,
        "",
        "its layers, with the embedding on the first stage and head and last norm on the last",
        **facts,
    )
    sheet.add(
        section, "mean_stage_parameters", "mean stage", mean, "", "all stages / pp; a tied head is a copy", **facts
    )


def _flops(sheet: Sheet, shape: Shape, seq_len: int) -> None:
    section, two_n = "Arithmetic", parameter_flops(shape)
    n: Value = shape.active_parameters
    sheet.add(section, "sequence_tokens", "sequence length", seq_len, "tokens", "--seq-len, or the context")
    sheet.add(section, "forward_gflop_per_token", "forward, 2 N", two_n / 1e9, "GFLOP/token", "2 N / 1e9", N=n)
    sheet.add(section, "training_gflop_per_token", "training, 6 N", 3 * two_n / 1e9, "GFLOP/token", "6 N / 1e9", N=n)
    parts = forward_parts(shape, seq_len)
    sheet.add(
        section,
        "score_gflop_per_token",
        "attention scores, forward, causal",
        parts.scores / 1e9,
        "GFLOP/token",
        "2 x score width x (s / 2) x layers; score width 2 heads head_dim",
        heads=shape.n_heads,
        head_dim=shape.head_dim,
        s=seq_len,
        layers=shape.n_layers,
        window=shape.window,
    )
    sheet.add(
        section,
        "score_share",
        "scores against 2 N",
        parts.scores / two_n,
        "share",
        "scores / 2 N",
        scores=parts.scores,
        N=n,
    )
    rows: Sequence[dict[str, Value]] = [
        {
            "convention": name,
            "forward_gflop_per_token": c.forward / 1e9,
            "training_gflop_per_token": c.training / 1e9,
            "over_6n_ratio": c.training / (3 * two_n),
            "counts": c.counts,
        }
        for name, c in conventions(shape, seq_len).items()
    ]
    sheet.table("flops_per_token", f"FLOPs per token under every convention, {seq_len:,} tokens", rows)


def _memory(sheet: Sheet, shape: Shape, seq_len: int) -> None:
    section = "Memory"
    kv = shape.kv_bytes_per_token()
    sheet.add(
        section,
        "kv_bytes_per_token",
        "key/value cache of a token, 16 bit",
        kv,
        "bytes",
        "layers x (latent + rotary key) x 2 bytes" if shape.latent else "layers x 2 x kv_heads x head_dim x 2 bytes",
        layers=shape.n_layers,
        kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
    )
    sheet.add(
        section,
        "kv_gb_per_sequence",
        f"cache of {seq_len:,} tokens",
        shape.kv_bytes_per_token() * _kept(shape, seq_len) / 1e9,
        "GB",
        "bytes a token x tokens kept; layers with a window keep the window",
        s=seq_len,
        window=shape.window,
    )
    heaviest = sheet["heaviest_stage_parameters"]
    assert isinstance(heaviest, int)
    rows: Sequence[dict[str, Value]] = [
        {
            "precision": name,
            "bytes_per_weight": size,
            "weights_gb": shape.total_parameters * size / 1e9,
            "heaviest_stage_gb": heaviest * size / 1e9,
            "active_gb": shape.active_parameters * size / 1e9,
        }
        for name, size in BYTES.items()
    ]
    sheet.table("weights", "Weights by precision", rows)


def _kept(shape: Shape, seq_len: int) -> float:
    """Tokens in the cache, on average over layers."""
    kept = min(seq_len, shape.window or seq_len)
    return (shape.windowed_layers * kept + (shape.n_layers - shape.windowed_layers) * seq_len) / shape.n_layers


def _beside(sheet: Sheet, shape: Shape) -> None:
    gpt3 = known_shapes()["gpt3"].shape
    twins = [("this model", shape)]
    twins += [("dense twin", dense_twin(shape))] if shape.sparse_layers else []
    rows: Sequence[dict[str, Value]] = [
        {
            "model": label,
            "total_parameters": s.total_parameters,
            "active_parameters": s.active_parameters,
            "forward_gflop_per_token": parameter_flops(s) / 1e9,
            "kv_bytes_per_token": s.kv_bytes_per_token(),
            "total_over_gpt3_ratio": s.total_parameters / gpt3.total_parameters,
            "active_over_gpt3_ratio": s.active_parameters / gpt3.active_parameters,
        }
        for label, s in [*twins, ("GPT-3", gpt3)]
    ]
    sheet.table("beside", "Beside its dense twin and GPT-3", rows)


def _batches(sheet: Sheet, shape: Shape, recipe: Recipe) -> None:
    rows: Sequence[dict[str, Value]] = [
        {
            "stage": stage.name,
            "after_tokens": step.after_tokens,
            "batch_tokens": step.tokens,
            "batch_sequences": step.tokens // stage.seq_len,
            "sequence_tokens": stage.seq_len,
            "batch_tokens_per_expert": tokens_per_expert(step.tokens, shape.top_k, shape.n_experts),
        }
        for stage in recipe.stages
        for step in stage.batch
    ]
    sheet.table("batches", "Every batch in tokens, sequences and tokens per expert (under even routing)", rows)
