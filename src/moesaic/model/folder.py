"""The model folder: a standard Hugging Face folder that other engines read, written whole or not at all.

config.json            see `folder_config`        generation_config.json   ids that end an answer
model.safetensors      or shards with an index    README.md                the model card
tokenizer.json ...     copied as they are
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moesaic.errors import ModelError
from moesaic.model.folder_config import from_config, read_json, to_config
from moesaic.model.transformer import Transformer
from moesaic.recipe import Model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file and where it lives in a Transformer: `parameter[index]`."""

    name: str
    parameter: str
    index: tuple[int, ...] = ()


def entries(config: Model) -> Iterator[Entry]:
    """All tensors of a folder, in the order of computation, under Mixtral's (dense: Llama's) names."""
    yield Entry("model.embed_tokens.weight", "embedding")
    for n in range(config.n_layers):
        theirs, ours = f"model.layers.{n}", f"layers.{n}"
        yield Entry(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        for letter in "qkvo":
            yield Entry(f"{theirs}.self_attn.{letter}_proj.weight", f"{ours}.attention.w{letter}")
        yield Entry(f"{theirs}.post_attention_layernorm.weight", f"{ours}.experts_norm.weight")
        moe = f"{theirs}.block_sparse_moe"
        if config.n_experts > 1:
            yield Entry(f"{moe}.gate.weight", f"{ours}.router.weight")
        for e in range(config.n_experts):
            gate, up, down = (f"{moe}.experts.{e}.{w}.weight" for w in ("w1", "w3", "w2"))
            if config.n_experts == 1:
                gate, up, down = (f"{theirs}.mlp.{w}_proj.weight" for w in ("gate", "up", "down"))
            yield Entry(gate, f"{ours}.experts.w_in", (e, 0))
            yield Entry(up, f"{ours}.experts.w_in", (e, 1))
            yield Entry(down, f"{ours}.experts.w_out", (e,))
    yield Entry("model.norm.weight", "norm.weight")
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", "head")


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
    Raises ModelError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write_weights(model, scratch, dtype, shard_bytes)
        stop_ids: list[int] = []
        if tokenizer_folder is not None:
            for name in TOKENIZER_FILES:
                if (tokenizer_folder / name).is_file():
                    shutil.copyfile(tokenizer_folder / name, scratch / name)
            stop_ids = _stop_ids(tokenizer_folder)
        _write_json(scratch / "config.json", to_config(model.config, str(dtype).removeprefix("torch."), stop_ids))
        _write_json(scratch / "generation_config.json", {"eos_token_id": stop_ids} if stop_ids else {})
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


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, compute_dtype: torch.dtype | None = None
) -> Transformer:
    """Read a model folder onto the default device; weights as stored unless `dtype` is given.

    Files are memory-mapped, pickles refused. Products run in `compute_dtype`, by default the embedding's.
    Raises ModelError naming file and tensor.
    """
    config = from_config(read_json(folder / "config.json"), folder / "config.json")
    with torch.device("meta"):
        model = Transformer(config)
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        files = _open(folder, stack)
        wanted = list(entries(config))
        _check_names(files, {e.name for e in wanted}, folder, config)
        groups: dict[str, list[Entry]] = {}
        for entry in wanted:
            groups.setdefault(entry.parameter, []).append(entry)
        for name, group in groups.items():
            pieces = [(e, _read(files, e.name, parameters[name][e.index].shape)) for e in group]
            kind = dtype or reduce(torch.promote_types, (t.dtype for _, t in pieces))
            values = torch.empty(parameters[name].shape, dtype=kind, device=torch.get_default_device())
            for entry, tensor in pieces:
                values[entry.index].copy_(tensor)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(values))
    model.compute_dtype = compute_dtype or model.embedding.dtype
    return model


def _write_weights(model: Transformer, folder: Path, dtype: torch.dtype, shard_bytes: float) -> None:
    parameters = dict(model.named_parameters())
    if meta := [n for n, p in parameters.items() if p.is_meta]:
        raise ModelError(
            f"the model has no weights yet ({meta[0]} is on the meta device); initialise or load them first"
        )
    shards: list[list[Entry]] = [[]]
    size = total = 0
    for entry in entries(model.config):
        nbytes = parameters[entry.parameter][entry.index].numel() * dtype.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size, total = size + nbytes, total + nbytes
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {e.name: parameters[e.parameter][e.index].detach().to("cpu", dtype).contiguous() for e in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _open(folder: Path, stack: ExitStack) -> dict[str, tuple[Any, Path]]:
    """Every tensor's name -> (open file, path)."""
    if (folder / INDEX).is_file():
        names: Iterable[str] = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif pickles := sorted(p.name for glob in PICKLES for p in folder.glob(glob)):
        raise ModelError(f"{folder / pickles[0]} is a pickle, which may run code when read; convert it to safetensors")
    else:
        raise ModelError(f"no {WEIGHTS} or {INDEX} in {folder}; copy the weights there")
    found: dict[str, tuple[Any, Path]] = {}
    for name in names:
        path = folder / name
        if path.resolve().parent != folder.resolve() and not path.is_symlink():
            raise ModelError(f"{folder / INDEX}: {name!r} lies outside the folder; keep all shards beside it")
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError as error:
            raise ModelError(f"{path} is missing, {INDEX} lists it; copy it again") from error
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is truncated or damaged ({error}); copy it again") from error
        found |= dict.fromkeys(file.keys(), (file, path))
    return found


def _check_names(files: dict[str, tuple[Any, Path]], wanted: set[str], folder: Path, config: Model) -> None:
    """Refuse a missing tensor, and one that we would silently leave out."""
    for name in sorted(wanted - files.keys()):
        raise ModelError(f"{folder}: tensor {name!r} is missing from the weights; config.json asks for it")
    for name in sorted(files.keys() - wanted):
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings):
            continue  # follow from config.json
        raise ModelError(f"{files[name][1]}: tensor {name!r} has no place in the model that config.json describes")


def _read(files: dict[str, tuple[Any, Path]], name: str, shape: torch.Size) -> Tensor:
    file, path = files[name]
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path}: tensor {name!r} cannot be read ({error}); copy the file again") from error
    if tensor.shape != shape:
        raise ModelError(
            f"{path}: tensor {name!r} is {list(tensor.shape)}, config.json asks for {list(shape)}; mend one"
        )
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ModelError(f"{path}: tensor {name!r} is stored as {tensor.dtype}, not computed here; convert it to bf16")
    return tensor


def _stop_ids(tokenizer_folder: Path) -> list[int]:
    """Ids of end of turn (if the tokenizer has it) and end of text."""
    tokenizer = read_json(tokenizer_folder / "tokenizer.json")
    ids: dict[str, int] = dict(tokenizer.get("model", {}).get("vocab", {}))
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    eos = read_json(tokenizer_folder / "tokenizer_config.json").get("eos_token")
    eos = eos["content"] if isinstance(eos, dict) else eos
    return list(dict.fromkeys(ids[t] for t in (END_OF_TURN, eos) if t in ids))


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
