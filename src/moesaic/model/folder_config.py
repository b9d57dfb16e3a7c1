"""config.json of a model folder <-> the recipe's Model: honour a key or refuse it by name.

Mixtral's keys for a mixture of experts, Llama's for a dense model; what only training needs stands in a
`moesaic` section.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesaic.errors import ModelError
from moesaic.recipe import Model

# Keys that say how a model was made, run or stored, not what it computes.
INERT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "is_llama_config",
    "model_type",
    "moesaic",
    "moesaic_vision",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "router_jitter_noise",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
}
# Keys with the one value that we compute; anything else is refused.
FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
}
# Our name, theirs.
SHAPE = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "context": "max_position_embeddings",
}
TRAINING_ONLY = ("balance_weight", "z_weight", "balance_scope")


def to_config(model: Model, dtype: str, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Contents of config.json; `dtype` is the stored one (`float32` or `bfloat16`)."""
    dense = model.n_experts == 1
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if dense else "MixtralForCausalLM"],
        "model_type": "llama" if dense else "mixtral",
        **{theirs: getattr(model, ours) for ours, theirs in SHAPE.items()},
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": list(stop_ids) or None,
        "pad_token_id": None,
        "moesaic": {name: getattr(model, name) for name in TRAINING_ONLY},
    }
    if dense:
        return config | {"attention_bias": False, "mlp_bias": False}
    return config | {
        "num_local_experts": model.n_experts,
        "num_experts_per_tok": model.top_k,
        "router_aux_loss_coef": model.balance_weight,
        "sliding_window": None,
    }


def from_config(config: Mapping[str, Any], where: Path) -> Model:
    """The Model that a config.json describes; `where` names the file in the ModelError."""
    kind = config.get("model_type")
    if kind not in ("mixtral", "llama"):
        raise ModelError(f"{where}: model_type {kind!r} cannot be computed here; mixtral and llama can")
    sparse = kind == "mixtral"
    used = {*SHAPE.values(), "num_key_value_heads", "head_dim", "initializer_range", "tie_word_embeddings"}
    used |= {"rope_theta", "rope_parameters", "sliding_window"}
    if sparse:
        used |= {"num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"}
    _refuse_unknown(config, used, where)
    missing = [theirs for theirs in SHAPE.values() if theirs not in config]
    if missing:
        raise ModelError(f"{where}: no {missing[0]!r}; add it as the model's author states it")
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in SHAPE.items()}
    window = config.get("sliding_window")
    if window is not None and window < values["context"]:
        raise ModelError(
            f"{where}: sliding_window = {window} is shorter than the context of {values['context']} and not "
            f"computed here; lower max_position_embeddings to {window}"
        )
    heads = values["n_heads"]
    values |= {
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or values["d_model"] // max(heads, 1),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "init_std": config.get("initializer_range", 0.02),
        "rope_theta": _rope_theta(config, where),
        "n_experts": config.get("num_local_experts", 8) if sparse else 1,
        "top_k": config.get("num_experts_per_tok", 2) if sparse else 1,
    }
    if "router_aux_loss_coef" in config and sparse:
        values["balance_weight"] = config["router_aux_loss_coef"]
    extras = config.get("moesaic") or {}
    values |= {name: extras[name] for name in TRAINING_ONLY if name in extras}
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"{where}: {field} {first['msg'].removeprefix('Value error, ')}".strip()) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no {path.name} in {path.parent}; give a folder that `moesaic train` wrote") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object; write the folder again")
    return value


def _refuse_unknown(config: Mapping[str, Any], used: set[str], where: Path) -> None:
    for key, value in config.items():
        if key in FIXED:
            if value not in FIXED[key]:
                raise ModelError(f"{where}: {key} = {value!r} is not computed here, only {FIXED[key][0]!r} is")
        elif key not in used and key not in INERT and value not in (None, False):
            raise ModelError(f"{where}: unknown key {key} = {value!r}; remove it if it does not change the computation")


def _rope_theta(config: Mapping[str, Any], where: Path) -> float:
    """The rotary base from either place; both must agree."""
    parameters = config.get("rope_parameters") or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ModelError(f"{where}: rope_type {kind!r} is not computed here, only 'default' is")
    found = {float(t) for t in (parameters.get("rope_theta"), config.get("rope_theta")) if t is not None}
    if len(found) > 1:
        raise ModelError(f"{where}: rope_theta and rope_parameters.rope_theta differ: {sorted(found)}; keep one")
    return found.pop() if found else 10_000.0
