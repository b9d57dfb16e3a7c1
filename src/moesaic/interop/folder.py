"""The model folder: a standard Hugging Face folder that other engines read, written whole or not at all.

config.json            see `hf_config`            generation_config.json   ids that end an answer
model.safetensors      or shards with an index    README.md                the model card
tokenizer.json ...     copied as they are
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from moesaic.errors import ModelError
from moesaic.interop.families import Entry, entries, family_for
from moesaic.interop.hf_config import from_config, read_json, to_config
from moesaic.interop.weights import INDEX, WEIGHTS, TensorFiles, narrowed, read_tensors
from moesaic.model import Transformer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
GENERATION = "generation_config.json"
END_OF_TURN = "<|im_end|>"


def save_model(
    model: Transformer,
    folder: Path,
    *,
    tokenizer_folder: Path | None = None,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
    shard_bytes: float = 5e9,
) -> None:
    """Write `model` as a Hugging Face folder; what stood there is replaced once the new one is complete.

    Weights are stored as `dtype`, in files of at most `shard_bytes` (one tensor may exceed it).
    Raises ModelError, also when something else than a model stands there.
    """
    check_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise ModelError(f"cannot write into {folder.parent}: {error.strerror}; choose another place") from error
    try:
        _write_weights(model, scratch, dtype, shard_bytes)
        stop_ids: list[int] = []
        if tokenizer_folder is not None:
            for name in TOKENIZER_FILES:
                if (tokenizer_folder / name).is_file():
                    shutil.copyfile(tokenizer_folder / name, scratch / name)
            stop_ids = stop_ids_of(tokenizer_folder)
        _write_json(scratch / "config.json", to_config(model.config, str(dtype).removeprefix("torch."), stop_ids))
        _write_json(scratch / GENERATION, {"eos_token_id": stop_ids} if stop_ids else {})
        if card is not None:
            (scratch / "README.md").write_text(card, encoding="utf-8")
        _replace(scratch, folder)
    except OSError as error:
        raise ModelError(
            f"cannot write the model to {folder}: {error.strerror or error}; free some space or move"
        ) from error
    except SafetensorError as error:  # how the library reports a full disk
        raise ModelError(
            f"cannot write the weights to {folder}: {error}; free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Raises ModelError unless a model may be written there: nothing else is ever replaced."""
    if folder.is_dir() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ModelError(f"{folder} holds files that are not a model; choose another place")
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file; choose another place")


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Transformer:
    """Read a model folder onto `device`, else the default one; weights as stored unless `dtype` is given.

    Files are memory-mapped, pickles refused. Products run in `compute_dtype`, by default the embedding's.
    Raises ModelError naming file and tensor.
    """
    config, family = from_config(read_json(folder / "config.json"), folder / "config.json")
    files = TensorFiles(folder)
    files.check_names((e.name for e in entries(config, family)), config)
    with torch.device("meta"):
        model = Transformer(config)
    try:
        for name, values in read_tensors(files, model, family, dtype, device or torch.get_default_device()):
            set_parameter(model, name, values)
    finally:
        files.close()
    model.compute_dtype = compute_dtype or model.embedding.dtype
    return model


def set_parameter(model: Transformer, name: str, values: Tensor) -> None:
    """Put `values` in the place of a parameter, whatever its device and dtype were."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(values))


def _write_weights(model: Transformer, folder: Path, dtype: torch.dtype, shard_bytes: float) -> None:
    parameters = dict(model.named_parameters())
    if meta := [n for n, p in parameters.items() if p.is_meta]:
        raise ModelError(
            f"the model has no weights yet ({meta[0]} is on the meta device); initialise or load them first"
        )
    shards: list[list[Entry]] = [[]]
    size = total = 0
    for entry in entries(model.config, family_for(model.config)):
        nbytes = _values(model, parameters, entry).numel() * dtype.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size, total = size + nbytes, total + nbytes
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {e.name: narrowed(_values(model, parameters, e).cpu(), dtype, e.name).contiguous() for e in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _values(model: Transformer, parameters: dict[str, nn.Parameter], entry: Entry) -> Tensor:
    if entry.parameter is None:
        return torch.zeros(1, model.config.d_model)
    return parameters[entry.parameter][entry.index].detach()


def stop_ids_of(tokenizer_folder: Path) -> list[int]:
    """Ids that end an answer: end of turn (if the tokenizer has it), end of text, what a model there states."""
    tokenizer = read_json(tokenizer_folder / "tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids: dict[str, int] = (
        dict(vocabulary) if isinstance(vocabulary, dict) else {t: i for i, (t, _) in enumerate(vocabulary)}
    )
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    eos = _optional_json(tokenizer_folder / "tokenizer_config.json").get("eos_token")
    eos = eos["content"] if isinstance(eos, dict) else eos
    found = [ids[t] for t in (END_OF_TURN, eos) if t in ids]
    # A model's folder: transformers, too, looks into config.json when there is no other file.
    files = (GENERATION, "config.json")
    stated: Any = next(
        (_optional_json(tokenizer_folder / f).get("eos_token_id") for f in files if (tokenizer_folder / f).is_file()),
        None,
    )
    return list(dict.fromkeys([*found, *(stated if isinstance(stated, list) else [stated] * (stated is not None))]))


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _replace(scratch: Path, folder: Path) -> None:
    """Put `scratch` in the place of `folder`, contents on disk first."""
    scratch.chmod(0o755)  # mkdtemp makes it private
    for path in scratch.iterdir():
        path.chmod(0o644)  # and safetensors its file
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
        folder.rename(old / folder.name)
        scratch.rename(folder)
        shutil.rmtree(old)
    else:
        scratch.rename(folder)
