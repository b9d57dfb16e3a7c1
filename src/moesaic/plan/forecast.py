"""What a run should take, from the recipe and rates measured before step 1. Kept as `forecast.json`."""

import math
from collections.abc import Mapping
from typing import Any

from moesaic.plan.flops import training_flops
from moesaic.plan.routing import tokens_per_expert
from moesaic.plan.shape import shape_of
from moesaic.recipe import Recipe, Stage

WEIGHT_BYTES, GRADIENT_BYTES, ADAM_BYTES = (
    4,
    4,
    8,
)  # per parameter: fp32 weights and gradients, two fp32 moments


def forecast(
    recipe: Recipe,
    rates: Mapping[tuple[str, int], float],
    source_tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The contents of `forecast.json`.

    `rates`: measured tokens/s by stage and batch (tokens); a stage that lacks one gets no time.
    `source_tokens`: tokens of one epoch by source, once the shards are built; without it there are no epochs and no
    stage ends early. Steps assume full packs. `flops` are 6 x active parameters x tokens, `flops_with_attention` every
    product with the causal half of the scores. Memory counts weights, gradients and Adam's moments of all devices
    together, without activations.
    """
    shape = shape_of(recipe.model, recipe.name)
    total, active = shape.total_parameters, shape.active_parameters
    capacity = {s.name: source_tokens[s.name] * s.epochs for s in recipe.data.sources} if source_tokens else None
    left = dict(capacity) if capacity else None
    stages: list[dict[str, Any]] = []
    for stage in recipe.stages:
        drawn = _draw(stage, capacity, left) if capacity and left else None
        tokens = stage.tokens if drawn is None else min(stage.tokens, sum(drawn.values()))
        ramp = batch_ramp(stage, tokens)
        known = all((stage.name, batch) in rates for batch, _ in ramp)
        seconds = sum(n * batch / rates[stage.name, batch] for batch, n in ramp) if known else None
        last = stage.batch_tokens(max(0, tokens - 1))
        stages.append(
            {
                "name": stage.name,
                "seq_len": stage.seq_len,
                "tokens": tokens,
                "steps": sum(n for _, n in ramp),
                "batch_tokens": [stage.batch_tokens(0), last],
                "batch_sequences": [stage.batch_tokens(0) // stage.seq_len, last // stage.seq_len],
                "tokens_per_expert": tokens_per_expert(last, recipe.model.top_k, recipe.model.n_experts),
                "tokens_per_second": tokens / seconds if seconds else None,
                "seconds": seconds,
                "flops": 6 * active * tokens,
                "flops_with_attention": training_flops(shape, stage.seq_len) * tokens,
                "epochs": _epochs(drawn, source_tokens),
            }
        )
        for name, used in (drawn or {}).items():
            if left:
                left[name] -= used
    times = [s["seconds"] for s in stages]
    return {
        "recipe": recipe.name,
        "system_hash": recipe.system_hash(),
        "parameters": {"total": total, "active": active},
        "checkpoint_bytes": total * (WEIGHT_BYTES + ADAM_BYTES),
        "memory_bytes": total * (WEIGHT_BYTES + GRADIENT_BYTES + ADAM_BYTES),
        "stages": stages,
        "total": {
            "tokens": sum(s["tokens"] for s in stages),
            "steps": sum(s["steps"] for s in stages),
            "flops": sum(s["flops"] for s in stages),
            "flops_with_attention": sum(s["flops_with_attention"] for s in stages),
            "seconds": sum(times) if None not in times else None,
        },
    }


def batch_ramp(stage: Stage, tokens: int) -> list[tuple[int, int]]:
    """(batch in tokens, steps) through the ramp: each step has the batch that the tokens before it ask for."""
    done, ramp = 0, []
    ends = [b.after_tokens for b in stage.batch[1:]] + [tokens]
    for batch, end in zip(stage.batch, ends, strict=True):
        count = max(0, math.ceil((min(end, tokens) - done) / batch.tokens))
        done += count * batch.tokens
        ramp += [(batch.tokens, count)] if count else []
    return ramp


def _draw(stage: Stage, capacity: Mapping[str, int], left: Mapping[str, int]) -> dict[str, int]:
    """Tokens from each source: in proportion; what a spent source cannot give, the others do.

    `capacity`: tokens x epochs of each source; `left`: what earlier stages left of it.
    """
    drawn = dict.fromkeys(stage.sources, 0)
    weights = {name: (stage.weights or capacity)[name] for name in stage.sources}
    wanted = stage.tokens
    while wanted > 0 and (open_ := [name for name in drawn if left[name] > drawn[name]]):
        share = wanted / sum(weights[name] for name in open_)
        for name in open_:
            drawn[name] += min(left[name] - drawn[name], math.ceil(share * weights[name]))
        wanted = stage.tokens - sum(drawn.values())
    return drawn


def _epochs(drawn: Mapping[str, int] | None, source_tokens: Mapping[str, int] | None) -> dict[str, float] | None:
    if drawn is None or source_tokens is None:
        return None
    return {name: used / source_tokens[name] if source_tokens[name] else 0.0 for name, used in drawn.items()}
