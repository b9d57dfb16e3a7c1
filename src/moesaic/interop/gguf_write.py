"""A model as a GGUF file in fp32 or bf16, through the `gguf` library; whole under its name, or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import ModelError
from moesaic.interop.gguf_layout import ARCHITECTURES, Architecture, gguf_entries, llama3_factors, to_pairs
from moesaic.interop.gguf_read import FREQUENCIES
from moesaic.interop.gguf_tokenizer import tokenizer_metadata
from moesaic.interop.weights import narrowed
from moesaic.model import Transformer
from moesaic.model.rotary import frequencies
from moesaic.recipe import Model


def architecture_for(model: Model) -> Architecture:
    """The architecture of llama.cpp that computes `model`. Raises ModelError naming what none does."""
    if any((model.experts_of(n), model.d_ff_of(n)) != (model.n_experts, model.d_ff) for n in model.dense_layers):
        raise ModelError("dense_layers: no architecture of llama.cpp mixes them with these experts")
    if model.window is not None and model.window < model.context:
        raise ModelError(f"window = {model.window}: llama.cpp's llama has no sliding window; export a folder")
    if model.clip_qkv is not None:
        raise ModelError(f"clip_qkv = {model.clip_qkv} is not computed by llama.cpp's olmoe")
    scaling = model.rope_scaling
    if scaling is not None and (
        scaling.kind == "dynamic"
        or (scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow, scaling.truncate) != (32, 1, True))
        or (scaling.kind == "yarn" and scaling.attention_factor is not None)
    ):
        raise ModelError(f"rope_scaling of kind {scaling.kind!r} with these values cannot be written to GGUF")
    sparse = model.n_experts > 1
    for architecture in ARCHITECTURES.values():
        fits = architecture.sparse in (None, sparse) and architecture.qk_norm == model.qk_norm
        if fits and (not sparse or architecture.norm_top_k == model.norm_top_k):
            _check_limits(model, architecture)
            return architecture
    raise ModelError(
        f"no architecture of llama.cpp has qk_norm = {model.qk_norm}, norm_top_k = {model.norm_top_k} and "
        f"{model.n_experts} experts; export it as a Hugging Face folder"
    )


def _check_limits(model: Model, architecture: Architecture) -> None:
    """Refuse what llama.cpp's loader of this architecture has no tensor for (its src/models/*.cpp)."""
    scaling, name = model.rope_scaling, architecture.name
    if name != "llama" and (model.attention_bias or model.mlp_bias):
        raise ModelError(f"biases are not computed by llama.cpp's {name}; export it as a Hugging Face folder")
    if name != "llama" and scaling is not None and scaling.kind == "llama3":
        raise ModelError(f"rope_scaling of kind 'llama3' is not computed by llama.cpp's {name}")
    widths = {model.d_model, model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim}
    if name == "olmoe" and (len(widths) > 1 or model.tie_embeddings):
        raise ModelError(
            "llama.cpp's olmoe wants as many key/value heads as heads, all as wide as the model, and a head"
        )


def write_gguf(
    model: Transformer, path: Path, tokenizer_folder: Path, stop_ids: list[int], dtype: torch.dtype = torch.float32
) -> None:
    """Write `model` with the tokenizer of a folder; matrices as `dtype` (fp32, bf16 or fp16), vectors in fp32.

    Raises ModelError.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    except ImportError as error:
        raise ModelError(f"{path}: writing GGUF needs the library: pip install gguf") from error
    config, architecture = model.config, architecture_for(model.config)
    metadata = tokenizer_metadata(tokenizer_folder, config.vocab_size, stop_ids)
    kinds = {
        torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
        torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    }
    if dtype not in kinds:
        raise ModelError(f"GGUF files are written in fp32, bf16 or fp16, not {dtype}; use --dtype float32")
    quantized, file_type = kinds[dtype]
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the name of a .gguf file")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(descriptor)
    try:
        writer = GGUFWriter(partial, architecture.name)
        writer.add_type("model")
        writer.add_name(path.stem)
        writer.add_file_type(int(file_type))
        _add_shape(writer, config)
        for key, value in metadata.items():
            _add(writer, f"tokenizer.{key}", value)
        parameters = dict(model.named_parameters())
        tensors: list[tuple[str, Tensor, int | None, torch.dtype]] = []
        for entry in gguf_entries(config, architecture):
            values = parameters[entry.parameter].detach()[entry.index]
            # llama.cpp keeps norms, biases and routers in fp32.
            kind = dtype if values.ndim > 1 and "ffn_gate_inp" not in entry.name else torch.float32
            raw = quantized if kind == dtype else GGMLQuantizationType.F32
            size = values.numel() * kind.itemsize
            writer.add_tensor_info(entry.name, list(values.shape), _numpy_type(kind), size, raw)
            tensors.append((entry.name, values, entry.heads, kind))
        if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
            plain, _ = frequencies(config.head_dim, config.rope_theta, None)
            scaled, _ = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            factors = llama3_factors(scaled, plain)
            writer.add_tensor_info(FREQUENCIES, list(factors.shape), _numpy_type(torch.float32), factors.nbytes)
            tensors.append((FREQUENCIES, factors, None, torch.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, values, heads, kind in tensors:  # one at a time: a copy of one tensor is all the memory it takes
            rows = values.float().cpu()
            rows = to_pairs(rows, heads) if heads is not None else rows
            stored = narrowed(rows, kind, name).contiguous()
            writer.write_tensor_data((stored.view(torch.int16) if kind == torch.bfloat16 else stored).numpy())
        writer.close()
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}; free some space or move") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _add_shape(writer: Any, config: Model) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.n_experts > 1:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.top_k)
        if config.qk_norm is not None:
            writer.add_expert_feed_forward_length(config.d_ff)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "llama3":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(scaling.original_context)


def _add(writer: Any, key: str, value: Any) -> None:
    """A metadata value by its Python type; ids and counts are unsigned."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _numpy_type(dtype: torch.dtype) -> Any:
    import numpy as np

    return np.dtype({torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "int16"}[dtype])
