"""Tensors of a model folder: memory-mapped safetensors, checked one by one. Pickles are refused."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moesaic.errors import ModelError
from moesaic.interop.families import Entry, Family, entries
from moesaic.interop.hf_config import read_json
from moesaic.model import Transformer
from moesaic.recipe import Model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Pages of a mapped file count as ours until it is closed: it is opened anew after so many bytes.
MAPPED_BYTES = 2**25


class TensorFiles:
    """The safetensors files of a folder, read by tensor name. Raises ModelError naming file and tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._mapped = 0
        for name in self._file_names():
            path = folder / name
            if path.resolve().parent != folder.resolve() and not path.is_symlink():
                raise ModelError(f"{folder / INDEX}: {name!r} lies outside the folder; keep all shards beside it")
            self.place |= dict.fromkeys(self._file(path).keys(), path)
            self.close()

    def _file_names(self) -> Iterable[str]:
        folder = self.folder
        if (folder / INDEX).is_file():
            return sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        if (folder / WEIGHTS).is_file():
            return [WEIGHTS]
        if pickles := sorted(p.name for glob in PICKLES for p in folder.glob(glob)):
            raise ModelError(
                f"{folder / pickles[0]} is a pickle, which may run code when read; convert it to safetensors"
            )
        raise ModelError(f"no {WEIGHTS} or {INDEX} in {folder}; copy the weights there")

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise ModelError(f"{path} is missing, {INDEX} lists it; copy it again") from error
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is truncated or damaged ({error}); copy it again") from error
        return self._open[path]

    def close(self) -> None:
        """Unmap every file; the next read maps it again."""
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()
        self._mapped = 0

    def check_names(self, wanted: Iterable[str], config: Model) -> None:
        """Refuse a missing tensor, and one that would silently be left out."""
        known = set()
        for name in wanted:  # ends at the first one that is missing, however many layers a config claims
            if name not in self.place:
                raise ModelError(f"{self.folder}: tensor {name!r} is missing from the weights; config.json asks for it")
            known.add(name)
        for name in sorted(self.place.keys() - known):
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings):
                continue  # follow from config.json
            raise ModelError(
                f"{self.place[name]}: tensor {name!r} has no place in the model that config.json describes"
            )

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """A view of the file, valid until `close`. Refuses another shape, a storage we cannot compute, NaN."""
        path = self.place[name]
        try:
            tensor: Tensor = self._file(path).get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path}: tensor {name!r} cannot be read ({error}); copy the file again") from error
        check_tensor(tensor, shape, f"{path}: tensor {name!r}")
        self._mapped += tensor.nbytes
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, from the header of its file."""
        stored = self._file(self.place[name]).get_slice(name).get_dtype()
        return STORED.get(stored, torch.uint8)

    def check_shape(self, name: str, wanted: Sequence[int]) -> None:
        """Refuse another shape, from the header of its file."""
        found = self._file(self.place[name]).get_slice(name).get_shape()
        check_shape(found, wanted, f"{self.place[name]}: tensor {name!r}")

    @property
    def full(self) -> bool:
        """Whether so much is mapped that the files should be closed."""
        return self._mapped > MAPPED_BYTES


def check_shape(found: Sequence[int], wanted: Sequence[int], what: str) -> None:
    """Raises ModelError, beginning with `what`, when the two differ."""
    if tuple(found) != tuple(wanted):
        raise ModelError(f"{what} is {list(found)}, the config asks for {list(wanted)}; mend one")


def check_tensor(tensor: Tensor, shape: torch.Size, what: str) -> None:
    """Raises ModelError, beginning with `what`, for another shape, a storage we cannot compute, or NaN."""
    check_shape(tensor.shape, shape, what)
    if tensor.dtype not in FLOATS:
        raise ModelError(f"{what} is stored as {tensor.dtype}, not computed here; convert it to bf16")
    low, high = torch.aminmax(tensor)  # both are NaN when one element is
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ModelError(f"{what} holds NaN or infinity; copy the file again, or ask its author")


def narrowed(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`tensor` as `dtype`. Raises ModelError when a value does not fit: fp16 ends at 65,504."""
    out = tensor.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(out).all()):
        raise ModelError(f"tensor {name!r} has values that fp16 cannot hold; use --dtype bfloat16")
    return out


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The widest type among the parameters: what they are stored in so that none loses digits."""
    return reduce(torch.promote_types, {p.dtype for p in model.parameters()})


def read_tensors(
    files: TensorFiles, model: Transformer, family: Family, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a model on the meta device, on `device`; one at a time is in memory twice."""
    parameters = dict(model.named_parameters())
    groups: dict[str, list[Entry]] = {}
    for entry in entries(model.config, family):
        if entry.parameter is not None:
            groups.setdefault(entry.parameter, []).append(entry)
    for name, group in groups.items():
        for entry in group:  # before anything is allocated
            files.check_shape(entry.name, _shape(parameters, entry))
        kind = dtype
        if kind is None:
            kind = reduce(torch.promote_types, (files.dtype(e.name) for e in group))
        values = torch.empty(parameters[name].shape, dtype=kind, device=device)
        for entry in group:
            values[entry.index].copy_(files.read(entry.name, _shape(parameters, entry)))
            if files.full:
                files.close()
        yield name, values


def _shape(parameters: dict[str, nn.Parameter], entry: Entry) -> torch.Size:
    assert entry.parameter is not None
    return parameters[entry.parameter][entry.index].shape
