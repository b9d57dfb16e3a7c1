"""Tensors of a checkpoint, written and read with torch.distributed.checkpoint, resharded on the way.

A checkpoint knows only whole tensors by name and which rectangle of which lies in which file; no mesh, no placement,
no rank. So any layout reads what any other wrote, a plain tensor included.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from moesaic.errors import CheckpointError
from moesaic.train.host_copy import Piece
from moesaic.train.ranks import Ranks

_OTHER = "resume from another one"
_REMEDY = "the recipe's model or optimizer changed since it was saved: use the run's own recipe.toml"


class _PiecePlanner(DefaultSavePlanner):
    """Writes pieces. torch then drops all but one of those that several ranks hold, and checks that they tile."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces

    def create_local_plan(self) -> SavePlan:
        # An uneven split leaves some ranks with nothing; only a tensor that is empty as a whole is written as such.
        present = {n: p for n, p in self.pieces.items() if p.host.numel() or not p.size.numel()}
        self.plan = SavePlan(
            [
                WriteItem(
                    MetadataIndex(name, piece.chunk.offsets),
                    WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        piece.chunk, TensorProperties.create_from_tensor(piece.host), piece.size
                    ),
                )
                for name, piece in present.items()
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.pieces[index.fqn].host


def write_tensors(folder: Path, pieces: Mapping[str, Piece], ranks: Ranks) -> None:
    """Write this rank's `__RANK_0.distcp` and, on rank 0, `.metadata`. Every rank calls it.

    Raises CheckpointException on all ranks when one of them fails.
    """
    state: dict[str, Any] = {name: piece.host for name, piece in pieces.items()}
    state_dict_saver.save(
        state,
        storage_writer=FileSystemWriter(folder),
        planner=_PiecePlanner(pieces),
        process_group=ranks.group,
        no_dist=ranks.group is None,
    )


def read_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill this rank's tensors in place; no rank waits for another. Raises CheckpointError."""
    try:
        state_dict_loader.load(dict(tensors), storage_reader=FileSystemReader(path), no_dist=True)
    except (CheckpointException, OSError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {cause_of(error)}; {_OTHER}") from error


def match_names(path: Path, tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Names stored in a checkpoint. Raises CheckpointError when one of `tensors` is not there, or another there."""
    try:
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # a pickle: whatever was tampered with may raise anything
        raise CheckpointError(f"checkpoint {path} cannot be read: its .metadata is damaged; {_OTHER}") from error
    for name, tensor in tensors.items():
        entry = stored.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"checkpoint {path} has no tensor {name!r}; {_REMEDY}")
        if entry.size != tensor.shape or entry.properties.dtype != tensor.dtype:
            raise CheckpointError(
                f"checkpoint {path}: tensor {name!r} is {tuple(entry.size)} {entry.properties.dtype} there "
                f"and {tuple(tensor.shape)} {tensor.dtype} here; {_REMEDY}"
            )
    return set(stored)


def refuse_left_over(path: Path, stored: Iterable[str], wanted: set[str], entries: set[str]) -> None:
    """Raise CheckpointError for a stored name not among those `wanted` whose top-level entry is among `entries`."""
    if left := sorted(n for n in stored if n not in wanted and n.split(".")[0] in entries):
        raise CheckpointError(f"checkpoint {path} holds {left[0]!r}, which has no place here; {_REMEDY}")


def silence_torch() -> None:
    """Keep torch from warning, at each save and load, that there is no process group: one process is a valid run.

    For good, not around each call: filters of warnings belong to all threads at once.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def cause_of(error: BaseException) -> str:
    """The first line of what went wrong, from inside torch's wrapping."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    # A disk that fills up within a tensor reaches us as torch's complaint about a position in its archive.
    first: BaseException | None = error
    while first is not None and not isinstance(first, OSError):
        first = first.__cause__ or first.__context__
    error = first or error
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
