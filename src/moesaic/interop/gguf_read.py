"""A GGUF file as a model: header through the `gguf` library, tensors mapped and dequantised one at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from moesaic.errors import ModelError
from moesaic.interop.folder import set_parameter
from moesaic.interop.gguf_layout import ARCHITECTURES, Architecture, GGUFEntry, gguf_entries, llama3_factors, to_halves
from moesaic.interop.weights import check_shape, check_tensor
from moesaic.model import Transformer
from moesaic.model.rotary import frequencies
from moesaic.recipe import Model, RopeScaling

FREQUENCIES = "rope_freqs.weight"
CHUNK_VALUES = 2**20  # values dequantised at a time: the library's temporaries are several times as large
LLAMA3 = tuple({"factor": factor, "original_context": 8192} for factor in (8.0, 32.0))  # Llama 3.1 and 3.2
# Keys of an architecture that do not change what is computed here, or are read below.
KNOWN = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is ours: slowest dimension first."""

    shape: tuple[int, ...]
    kind: Any
    offset: int
    bytes: int


class GGUFFile:
    """Metadata and tensor places of a file. Raises ModelError when it is damaged or the library is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
        except ImportError as error:
            raise ModelError(f"{path}: reading GGUF needs the library: pip install gguf") from error

        class Header(GGUFReader):
            """The library's reader without its views of all tensors, which fail nameless when the file is cut."""

            def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
                self.places: dict[str, TensorInfo] = {}
                for field in fields:
                    _, name, _, dims, kind, offset = field.parts
                    title = bytes(name).decode()
                    if int(kind[0]) not in list(GGMLQuantizationType):
                        raise ModelError(
                            f"{path}: tensor {title!r}: quantisation number {kind[0]} is unknown to the gguf library; "
                            "use a file in another quantisation"
                        )
                    quantized = GGMLQuantizationType(kind[0])
                    block, size = GGML_QUANT_SIZES[quantized]
                    shape = tuple(int(d) for d in reversed(dims.tolist()))
                    if title in self.places or not all(shape) or shape[-1] % block:
                        raise ValueError(f"tensor {title!r} is there twice or no multiple of {block} wide")
                    count = math.prod(shape) // block * size
                    self.places[title] = TensorInfo(shape, quantized, start_offs + int(offset[0]), count)

        try:
            header = Header(path)
            self.metadata = {name: field.contents() for name, field in header.fields.items()}
        except FileNotFoundError as error:
            raise ModelError(f"no file {path}; give a .gguf file") from error
        except ModelError:
            raise
        except Exception as error:  # the library raises whatever NumPy does on a file that is cut
            raise ModelError(f"{path} is not a GGUF file, or its header is cut ({error}); copy it again") from error
        self.tensors: dict[str, TensorInfo] = header.places
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise ModelError(f"{path} is one of {parts} parts; join them first, with llama.cpp's gguf-split --merge")
        size = path.stat().st_size
        for name, info in self.tensors.items():
            if info.offset + info.bytes > size:
                raise ModelError(
                    f"{path} is truncated: tensor {name!r} ends at byte {info.offset + info.bytes:,}, the file at "
                    f"{size:,}; copy it again"
                )

    def get(self, key: str, otherwise: Any = None) -> Any:
        """A metadata value of the architecture, without its prefix."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", otherwise)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor as consecutive flat pieces of whole rows, fp32. Raises ModelError for an unknown quantisation."""
        from gguf.quants import dequantize

        info = self.tensors[name]
        raw = np.memmap(self.path, np.uint8, "r", info.offset, (info.bytes,))
        rows = math.prod(info.shape[:-1])
        step = max(CHUNK_VALUES // info.shape[-1], 1)
        by_row: NDArray[np.uint8] = raw.reshape(rows, -1)
        for lo in range(0, rows, step):
            try:
                values = dequantize(by_row[lo : lo + step], info.kind)
            except NotImplementedError as error:
                raise ModelError(
                    f"{self.path}: tensor {name!r}: {error}; use a file in another quantisation"
                ) from error
            yield torch.from_numpy(np.array(values, np.float32).reshape(-1))


def load_gguf(file: GGUFFile) -> Transformer:
    """The model in fp32 on the default device. Raises ModelError naming file and tensor."""
    config, architecture = gguf_model(file)
    wanted = _checked_entries(file, config, architecture)
    with torch.device("meta"):
        model = Transformer(config)
    parameters = dict(model.named_parameters())
    values: dict[str, Tensor] = {}
    for entry in wanted:  # before anything is allocated
        shape = parameters[entry.parameter][entry.index].shape
        check_shape(file.tensors[entry.name].shape, shape, f"{file.path}: tensor {entry.name!r}")
    for entry in wanted:
        if entry.parameter not in values:
            values[entry.parameter] = torch.empty(parameters[entry.parameter].shape, dtype=torch.float32)
        _fill(file, entry, values[entry.parameter][entry.index])
    for name, tensor in values.items():
        set_parameter(model, name, tensor)
    model.compute_dtype = torch.float32
    return model


def gguf_model(file: GGUFFile) -> tuple[Model, Architecture]:
    """The shape of a file's model. Raises ModelError for an architecture or a key that is not computed here."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: architecture {name!r} is not read from GGUF; {', '.join(ARCHITECTURES)} are. A Hugging Face "
            "folder of it may be readable"
        )
    architecture = ARCHITECTURES[name]
    for key, value in file.metadata.items():
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in KNOWN:
            raise ModelError(f"{file.path}: {key} = {value!r} is not computed here")
    for key in ("embedding_length", "block_count", "attention.head_count", "feed_forward_length", "context_length"):
        if file.get(key) is None and not (key == "feed_forward_length" and file.get("expert_feed_forward_length")):
            raise ModelError(f"{file.path}: no {name}.{key} in its metadata; it is damaged or very old")
    for key in ("embedding_length", "attention.head_count"):
        if not isinstance(file.get(key), int) or file.get(key) < 1:
            raise ModelError(
                f"{file.path}: {name}.{key} = {file.get(key)!r}: one number for all layers is computed here"
            )
    heads, width, context = file.get("attention.head_count"), file.get("embedding_length"), file.get("context_length")
    head_dim = file.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.get(key, head_dim) != head_dim:
            raise ModelError(f"{file.path}: {name}.{key} = {file.get(key)} is not computed, only {head_dim} is")
    embedding = file.tensors.get("token_embd.weight")
    experts = file.get("expert_count") or 1
    theta = _plain(file.get("rope.freq_base", 10_000.0))
    values: dict[str, Any] = {
        "vocab_size": embedding.shape[0] if embedding else len(file.metadata.get("tokenizer.ggml.tokens", ())),
        "d_model": width,
        "n_layers": file.get("block_count"),
        "n_heads": heads,
        "n_kv_heads": file.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "d_ff": file.get("expert_feed_forward_length") or file.get("feed_forward_length"),
        "n_experts": experts,
        "top_k": file.get("expert_used_count") or 1,
        "norm_top_k": architecture.norm_top_k or experts == 1,
        "context": context,
        "rope_theta": theta,
        "qk_norm": architecture.qk_norm,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_embeddings": "output.weight" not in file.tensors,
        "norm_eps": _plain(file.get("attention.layer_norm_rms_epsilon", 1e-5)),
    }
    try:
        values["rope_scaling"] = _scaling(file, head_dim, theta, context)
        return Model.model_validate(values), architecture
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise ModelError(f"{file.path}: {field} {first['msg'].removeprefix('Value error, ')}") from error


def _scaling(file: GGUFFile, head_dim: int, theta: float, context: int) -> RopeScaling | None:
    kind = file.get("rope.scaling.type", "none")
    if FREQUENCIES in file.tensors:
        factors = torch.cat(list(file.pieces(FREQUENCIES)))
        plain, _ = frequencies(head_dim, theta, None)
        for known in LLAMA3:
            scaling = RopeScaling.model_validate({"kind": "llama3", **known})
            if factors.shape == plain.shape and torch.allclose(
                factors, llama3_factors(frequencies(head_dim, theta, scaling)[0], plain), rtol=1e-4
            ):
                return scaling
        raise ModelError(
            f"{file.path}: tensor {FREQUENCIES!r} is not the scaling of Llama 3.1 or 3.2; import its folder"
        )
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{file.path}: rope.scaling.type = {kind!r} is not read from GGUF")
    values: dict[str, Any] = {"kind": kind, "factor": _plain(file.get("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        values["original_context"] = file.get("rope.scaling.original_context_length") or context
    return RopeScaling.model_validate(values)


def _plain(number: float) -> float:
    """The shortest decimal that is this fp32 number: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _fill(file: GGUFFile, entry: GGUFEntry, place: Tensor) -> None:
    flat = place.view(-1) if place.is_contiguous() else torch.empty(place.numel())
    at = 0
    for piece in file.pieces(entry.name):
        flat[at : at + len(piece)] = piece
        at += len(piece)
    if not place.is_contiguous():
        place.copy_(flat.view(place.shape))
    if entry.heads is not None:
        place.copy_(to_halves(place, entry.heads))
    check_tensor(place, place.shape, f"{file.path}: tensor {entry.name!r}")


def _checked_entries(file: GGUFFile, config: Model, architecture: Architecture) -> list[GGUFEntry]:
    """What the file must hold; raises ModelError for the first tensor that is missing, or has no place."""
    wanted = []
    for entry in gguf_entries(config, architecture):
        if entry.name not in file.tensors:
            raise ModelError(f"{file.path}: tensor {entry.name!r} is missing; the metadata asks for it")
        wanted.append(entry)
    for name in sorted(file.tensors.keys() - {e.name for e in wanted} - {FREQUENCIES}):
        raise ModelError(f"{file.path}: tensor {name!r} has no place in the model that the metadata describes")
    return wanted
