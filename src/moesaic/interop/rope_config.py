"""The rotary part of config.json <-> `rope_theta` and `rope_scaling` of a Model.

transformers 5 writes one table, `rope_parameters`; before it was `rope_theta` and `rope_scaling`. Both are read.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from moesaic.errors import ModelError
from moesaic.recipe import Model, RopeScaling

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
KEYS = {  # what each kind reads; anything else is refused
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


def rope_from_config(
    config: Mapping[str, Any], default_theta: float, context: int, where: object
) -> tuple[float, RopeScaling | None]:
    """Base and scaling; `where` names the file in the ModelError."""
    tables = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    table: dict[str, Any] = {}
    for other in tables:
        for key, value in other.items():
            wanted = str if key in ("rope_type", "type") else (int, float)
            if value is not None and not isinstance(value, wanted):
                raise ModelError(f"{where}: {key} = {value!r} of the rotary scaling cannot be; mend it")
            if table.setdefault(key, value) != value:
                raise ModelError(f"{where}: rope_parameters and rope_scaling differ in {key}; keep one of them")
    kinds = {table[key] for key in ("rope_type", "type") if table.get(key) is not None} or {"default"}
    if len(kinds) > 1:
        raise ModelError(f"{where}: rope_parameters and rope_scaling differ in the type: {sorted(kinds)}; keep one")
    kind = kinds.pop()
    if kind not in KEYS:
        raise ModelError(f"{where}: rope_type {kind!r} is not computed here; {', '.join(KEYS)} are")
    for key in sorted(table.keys() - COMMON - KEYS[kind]):
        if table[key] is not None:
            raise ModelError(f"{where}: {key} = {table[key]!r} of the rotary scaling is not computed for {kind!r}")
    if table.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(
            f"{where}: partial_rotary_factor = {table['partial_rotary_factor']} is not computed, only 1 is"
        )
    found = {float(t) for t in (table.get("rope_theta"), config.get("rope_theta")) if t is not None}
    if len(found) > 1:
        raise ModelError(f"{where}: rope_theta and rope_parameters.rope_theta differ: {sorted(found)}; keep one")
    theta = found.pop() if found else default_theta
    return theta, _scaling(kind, table, context, where)


def rope_to_config(model: Model) -> dict[str, Any]:
    """`rope_theta` and `rope_parameters`, and `rope_scaling` for readers that know only the older form."""
    scaling = model.rope_scaling
    if scaling is None:
        return {
            "rope_theta": model.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        }
    table: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        table["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        table |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        table |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            table["attention_factor"] = scaling.attention_factor
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": table,
        "rope_parameters": {**table, "rope_theta": model.rope_theta},
    }


def _scaling(kind: str, table: Mapping[str, Any], context: int, where: object) -> RopeScaling | None:
    if kind == "default":
        return None
    # transformers takes the context itself when the original one is not stated; for `dynamic` always.
    original = context if kind == "dynamic" else table.get("original_max_position_embeddings") or context
    factor = table.get("factor")
    if factor is None and kind == "yarn" and table.get("original_max_position_embeddings"):
        factor = context / original
    values = {"kind": kind, "factor": factor}
    if kind != "linear":
        values["original_context"] = original
    optional = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "truncate")
    values |= {name: table[name] for name in optional if name in KEYS[kind] and table.get(name) is not None}
    if kind == "yarn" and table.get("attention_factor") is None and table.get("mscale") and table.get("mscale_all_dim"):
        values["attention_factor"] = _mscale(factor, table["mscale"]) / _mscale(factor, table["mscale_all_dim"])
    try:
        return RopeScaling.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"{where}: rotary scaling {kind!r}: {name} {first['msg']}".rstrip()) from error


def _mscale(factor: Any, weight: Any) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
