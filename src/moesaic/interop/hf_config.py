"""config.json of a model folder <-> the recipe's Model: honour a key or refuse it by name.

What only training needs stands in a `moesaic` section; a model that no known family holds is described there whole.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moesaic.errors import ModelError
from moesaic.interop.families import OURS, SWITCHES, Family, family_for, find_family
from moesaic.interop.rope_config import rope_from_config, rope_to_config
from moesaic.recipe import Model

# Keys that say how a model was made, run or stored, not what it computes.
INERT = {
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "is_llama_config",
    "max_sequence_length",
    "model_type",
    "moesaic",
    "moesaic_vision",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "router_jitter_noise",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}
# Keys with the values that we compute; anything else is refused.
FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
}
# Our name, theirs.
SHAPE = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
    "context": "max_position_embeddings",
}
TRAINING_ONLY = ("balance_weight", "z_weight", "balance_scope")
# Keys of config.json behind each switch of a family.
SWITCH_KEYS = {
    "attention_bias": ("attention_bias",),
    "mlp_bias": ("mlp_bias",),
    "window": ("sliding_window",),
    "norm_top_k": ("norm_topk_prob",),
    "clip_qkv": ("clip_qkv",),
    "dense_layers": ("decoder_sparse_step", "mlp_only_layers", "intermediate_size"),
}
INTEGERS = ("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "decoder_sparse_step")
TYPES: tuple[tuple[type | tuple[type, ...], str, tuple[str, ...]], ...] = (
    (int, "a whole number", ("num_hidden_layers", "num_experts", "num_local_experts", *INTEGERS)),
    ((int, float), "a number", ("rope_theta",)),
    (list, "a list", ("layer_types", "mlp_only_layers")),
    (dict, "a table", ("rope_parameters", "rope_scaling", "moesaic")),
)
COUNTS = ("num_experts", "num_local_experts")  # transformers 5 writes either


def to_config(model: Model, dtype: str, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Contents of config.json; `dtype` is the stored one (`float32` or `bfloat16`)."""
    family = family_for(model)
    head = {"architectures": [family.architecture], "model_type": family.model_type}
    tail = {
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": list(stop_ids) or None,
        "pad_token_id": None,
    }
    if family is OURS:
        return head | tail | {"moesaic": model.model_dump(mode="json")}
    config: dict[str, Any] = {
        **head,
        **{theirs: getattr(model, ours) for ours, theirs in SHAPE.items()},
        family.d_ff: model.d_ff,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        **rope_to_config(model),
        "tie_word_embeddings": model.tie_embeddings,
        **tail,
        "moesaic": {name: getattr(model, name) for name in TRAINING_ONLY},
    }
    for switch, key in (("attention_bias", "attention_bias"), ("mlp_bias", "mlp_bias"), ("clip_qkv", "clip_qkv")):
        if switch in family.holds:
            config[key] = getattr(model, switch)
    if "norm_top_k" in family.holds:
        config["norm_topk_prob"] = model.norm_top_k
    if "window" in family.holds:
        config["sliding_window"] = model.window
    if family.sparse:
        config |= {
            family.n_experts: model.n_experts,
            "num_experts_per_tok": model.top_k,
            "router_aux_loss_coef": model.balance_weight,
        }
    if "dense_layers" in family.holds:
        config |= {
            "intermediate_size": model.dense_d_ff or model.d_ff,
            "mlp_only_layers": list(model.dense_layers),
            "decoder_sparse_step": 1,
            "use_sliding_window": model.window is not None,
        }
    return config


def from_config(config: Mapping[str, Any], where: Path) -> tuple[Model, Family]:
    """The Model that a config.json describes, and its family; `where` names the file in the ModelError."""
    family = find_family(config.get("model_type"), where)
    _check_types(config, where)
    extras = config.get("moesaic") or {}
    if family is OURS:
        return _checked(extras, where), family
    _refuse_unknown(config, family, where)
    missing = [theirs for theirs in (*SHAPE.values(), family.d_ff) if config.get(theirs) is None]
    if missing:
        raise ModelError(f"{where}: no {missing[0]!r}; add it as the model's author states it")
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in SHAPE.items()}
    values |= {"d_ff": config[family.d_ff], "qk_norm": family.qk_norm}
    heads = values["n_heads"]
    theta, scaling = rope_from_config(
        config, float(str(family.defaults.get("rope_theta", 10_000.0))), values["context"], where
    )
    values |= {
        "n_kv_heads": config.get("num_key_value_heads", family.defaults.get("num_key_value_heads")) or heads,
        "head_dim": _given(config, family, "head_dim") or values["d_model"] // max(heads, 1),
        "tie_embeddings": config.get("tie_word_embeddings") or False,
        "init_std": config.get("initializer_range") or 0.02,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "clip_qkv": config.get("clip_qkv"),
        "window": _window(config, family, where),
        "n_experts": 1,
        "top_k": 1,
    }
    if family.sparse:
        values |= _experts(config, family, values["n_layers"], where)
    values |= {name: extras[name] for name in TRAINING_ONLY if name in extras}
    return _checked(values, where), family


def read_shape(folder: Path) -> Model | None:
    """The Model of a folder's config.json; None when there is none. Raises ModelError."""
    path = folder.expanduser() / "config.json"
    return from_config(read_json(path), path)[0] if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no {path.name} in {path.parent}; give a model folder, which holds that file") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object; write the folder again")
    return value


def _check_types(config: Mapping[str, Any], where: Path) -> None:
    for kind, words, keys in TYPES:
        for key in keys:
            value = config.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ModelError(f"{where}: {key} = {value!r} is not {words}; write it as the model's author does")


def _checked(values: Mapping[str, Any], where: Path) -> Model:
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"{where}: {field} {first['msg'].removeprefix('Value error, ')}".strip()) from error


def _experts(config: Mapping[str, Any], family: Family, layers: int, where: Path) -> dict[str, Any]:
    """Number of experts, choices, and which layers have none."""
    counts = {config[key] for key in COUNTS if config.get(key) is not None}
    if len(counts) > 1:
        raise ModelError(f"{where}: num_experts and num_local_experts differ: {sorted(counts)}; keep one")
    values = {
        "n_experts": counts.pop() if counts else family.defaults[family.n_experts],
        "top_k": _given(config, family, "num_experts_per_tok"),
        "norm_top_k": bool(_given(config, family, "norm_topk_prob", True)),
    }
    if config.get("router_aux_loss_coef") is not None:
        values["balance_weight"] = config["router_aux_loss_coef"]
    if "dense_layers" in family.holds:
        step, named = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
        dense = tuple(n for n in range(layers) if n in named or (n + 1) % step)
        if dense:
            values |= {"dense_layers": dense, "dense_d_ff": config.get("intermediate_size")}
    return values


def _given(config: Mapping[str, Any], family: Family, key: str, otherwise: object = None) -> Any:
    value = config.get(key)
    return family.defaults.get(key, otherwise) if value is None else value


def _window(config: Mapping[str, Any], family: Family, where: Path) -> int | None:
    """Tokens of the sliding window, or None. A window in some layers only is refused."""
    switched = "use_sliding_window" in config or "dense_layers" in family.holds  # Qwen: off unless switched on
    window: int | None = config.get("sliding_window")
    if "sliding_window" not in config:
        window = family.defaults.get("sliding_window")  # type: ignore[assignment]
    if switched and not config.get("use_sliding_window"):
        window = None
    layers, kinds = config.get("max_window_layers"), set(config.get("layer_types") or ())
    if window is not None:
        if "window" not in family.holds:
            raise ModelError(f"{where}: sliding_window = {window} is not computed for {family.model_type}")
        if layers is not None and layers < config["num_hidden_layers"] and "use_sliding_window" in config:
            raise ModelError(
                f"{where}: max_window_layers = {layers}: a window in some layers only is not computed here"
            )
    if kinds - {"full_attention" if window is None else "sliding_attention"}:
        raise ModelError(f"{where}: layer_types: {sorted(kinds)} with sliding_window = {window} are not computed here")
    return window


def _refuse_unknown(config: Mapping[str, Any], family: Family, where: Path) -> None:
    used = {*SHAPE.values(), *INERT, family.d_ff, "num_key_value_heads", "head_dim", "initializer_range"}
    used |= {"tie_word_embeddings", "rope_theta", "rope_parameters", "rope_scaling", "sliding_window"}
    used |= {"use_sliding_window", "max_window_layers", "layer_types"}
    used |= {key for switch in family.holds for key in SWITCH_KEYS[switch]}
    if family.sparse:
        used |= {*COUNTS, "num_experts_per_tok", "router_aux_loss_coef"}
    elsewhere = {key for switch in SWITCHES for key in SWITCH_KEYS[switch]}
    if config.get("auto_map"):
        raise ModelError(
            f"{where}: auto_map names code inside the folder, which is never run; remove the key if the model is a "
            f"plain {family.model_type}"
        )
    for key, value in config.items():
        plain = (None, True) if key == "norm_topk_prob" else (None, False)
        if key in FIXED:
            if value not in FIXED[key]:
                raise ModelError(f"{where}: {key} = {value!r} is not computed here, only {FIXED[key][0]!r} is")
        elif key not in used and value not in plain:
            if key in elsewhere:
                raise ModelError(f"{where}: {key} = {value!r} is not computed for {family.model_type}")
            raise ModelError(f"{where}: unknown key {key} = {value!r}; remove it if it does not change the computation")
