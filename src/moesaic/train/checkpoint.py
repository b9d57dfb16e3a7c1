"""Checkpoints that can be trusted: complete, verified, and found again after any kind of death.

A checkpoint is born as `step_00000123.partial/`, gets a manifest of checksums, is renamed to
`step_00000123/`, and only then receives the file `COMMITTED`. Whoever dies before that leaves something that
the next start passes over.

    __0_0.distcp  one file per rank  tensors, written by torch.distributed.checkpoint
    .metadata                        where each tensor lies in those files
    values.json                      what the state holds besides tensors (learning rates, flags, names)
    extra.json                       what the caller adds (step, tokens, ledger, loader, hashes)
    manifest.json                    size and sha256 of all of the above
    COMMITTED                        sha256 of the manifest

torch writes `.metadata` as a pickle and there is no other way to read it. Its checksum is verified first,
which protects from damage, not from malice: load only checkpoints that someone you trust has written. All
else is read without pickle.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from moesaic.durable import sha256_of, sync_folder, write_durably
from moesaic.errors import CheckpointError
from moesaic.train.state_tree import fill_values, flatten_state

T = TypeVar("T")

FORMAT = 2  # of what a checkpoint holds; raised when a run of an older one could not go on
MANIFEST, MARKER, EXTRA, VALUES = "manifest.json", "COMMITTED", "extra.json", "values.json"
_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")
_WAITS_S = (1.0, 2.0, 5.0)  # before the first, second and every further try


class _SaveError(Exception):
    """A save that ended without a checkpoint; the message is the cause in one line."""


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Under a process group every rank makes every call; rank 0 keeps the books.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        retries: int,
        warn: Callable[[str], None] = _LOGGER.warning,
    ) -> None:
        """Keep the newest `keep` checkpoints besides pinned ones; try a failed save `retries` more times."""
        self.folder, self.keep, self.retries, self.warn = folder, keep, retries, warn
        self._verified: Path | None = None  # the last one hashed, so that it is hashed only once

    def save(self, step: int, state: dict[str, Any], extra: dict[str, Any], pin: bool = False) -> bool:
        """Write `step_{step}`; True when it is committed, False (after warnings) when no try succeeded.

        `state` is a tree of dicts, lists and tuples whose leaves are tensors, numbers, strings, booleans or
        None. `extra` must survive JSON: string keys, no tuples that must stay tuples. A pinned checkpoint is
        never pruned. Checkpoints of later steps are removed: they belong to a history that was left by
        resuming before it.
        Raises TypeError for a leaf or an `extra` that cannot be stored.
        """
        tensors, values = flatten_state(state)
        documents = {VALUES: json.dumps(values).encode(), EXTRA: json.dumps(extra, indent=1).encode()}
        for attempt in range(self.retries + 1):
            try:
                self._write(step, tensors, documents, pin)
            except _SaveError as error:
                more = attempt < self.retries
                ending = f"try {attempt + 2} of {self.retries + 1} follows" if more else "training goes on without it"
                self._warn_once(f"checkpoint at step {step} was not saved: {error}; {ending}; check {self.folder}")
                if more:
                    time.sleep(_WAITS_S[min(attempt, len(_WAITS_S) - 1)])
            else:
                return True
        return False

    def newest_good(self) -> Path | None:
        """The newest checkpoint that is complete and undamaged; warns about each one that it passes over.

        Removes what an interrupted save left behind (`*.partial`).
        """

        def search() -> str | None:
            self._remove_partials()
            for path in self._checkpoints():
                problem = problem_of(path)
                if problem is None:
                    return path.name
                self.warn(f"passed over checkpoint {path.name}: {problem}")
            return None

        name = _on_first_rank(search)
        self._verified = None if name is None else self.folder / name
        return self._verified

    def any_committed(self) -> bool:
        """Whether there is a checkpoint that was once complete, good or bad by now."""
        return _on_first_rank(lambda: any((path / MARKER).exists() for path in self._checkpoints()))

    def extra(self, path: Path) -> dict[str, Any]:
        """What the caller added to a checkpoint, without tensors. Raises CheckpointError if it is damaged."""
        if path != self._verified:
            if problem := _on_first_rank(lambda: problem_of(path)):
                raise CheckpointError(f"checkpoint {path} cannot be loaded: {problem}; resume from another one")
            self._verified = path
        extra: dict[str, Any] = json.loads((path / EXTRA).read_text(encoding="utf-8"))
        return extra

    def load(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Fill `state` in place, bit for bit, and return `extra`.

        `state` has the shape of what was saved; of its top-level entries any may be left out (to load only
        the model, say). Raises CheckpointError if the checkpoint is damaged or a tensor is missing, left
        over, or of another shape or type; then `state` is unchanged.
        """
        extra = self.extra(path)
        tensors, values = flatten_state(state)
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
        stored_values: dict[str, Any] = json.loads((path / VALUES).read_text(encoding="utf-8"))
        wanted = {name.split(".")[0] for name in state}
        _compare(path, tensors, {n: m for n, m in stored.items() if n.split(".")[0] in wanted})
        kept = {n: v for n, v in stored_values.items() if n.split(".")[0] in wanted}
        if differing := sorted(kept.keys() ^ values.keys()):
            raise CheckpointError(f"checkpoint {path}: value {differing[0]!r} stands only on one side; {_REMEDY}")
        try:
            with _quiet() as alone:
                state_dict_loader.load(tensors, storage_reader=FileSystemReader(path), no_dist=alone)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {_cause(error)}") from error
        fill_values(state, kept)
        return extra

    def _write(self, step: int, tensors: dict[str, torch.Tensor], documents: Mapping[str, bytes], pin: bool) -> None:
        """One try. Raises _SaveError, on every rank alike, and leaves no partial behind."""
        final = self.folder / f"step_{step:08d}"
        partial = self.folder / f"{final.name}.partial"
        try:
            _on_first_rank(lambda: self._begin(partial))
            with _quiet() as alone:
                state_dict_saver.save(dict(tensors), storage_writer=FileSystemWriter(partial), no_dist=alone)
            _on_first_rank(lambda: self._commit(step, partial, final, documents, pin))
        except (OSError, RuntimeError, CheckpointException) as error:
            if _interrupted(error):
                raise
            with contextlib.suppress(OSError):
                _on_first_rank(self._remove_partials)
            raise _SaveError(_cause(error)) from error

    def _begin(self, partial: Path) -> None:
        self._remove_partials()
        partial.mkdir(parents=True)

    def _commit(self, step: int, partial: Path, final: Path, documents: Mapping[str, bytes], pin: bool) -> None:
        for name, content in documents.items():
            write_durably(partial / name, content)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(partial.iterdir())}
        manifest = json.dumps({"format": FORMAT, "step": step, "pinned": pin, "files": files}, indent=1).encode()
        write_durably(partial / MANIFEST, manifest)
        sync_folder(partial)
        # Saving a step again must not lose the first save if we die halfway: it steps aside until the end.
        aside = final.with_name(f"{final.name}.replaced")
        if (final / MARKER).exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        else:
            shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(self.folder)
        write_durably(final / MARKER, hashlib.sha256(manifest).hexdigest().encode())
        sync_folder(final)
        shutil.rmtree(aside, ignore_errors=True)
        self._prune(step)

    def _prune(self, newest_step: int) -> None:
        good = 0
        for path in self._checkpoints():
            abandoned = _step(path) > newest_step
            intact = not abandoned and problem_of(path, hashes=False) is None
            good += intact
            if not intact or (good > self.keep and not _pinned(path)):
                # The marker goes first: a removal cut short must not look like damage.
                (path / MARKER).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        """All checkpoint folders, good or bad, newest first; of a step saved twice the second save first."""
        found = [p for p in self.folder.glob("step_*") if p.is_dir() and _NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: (_step(p), not p.name.endswith(".replaced")), reverse=True)

    def _remove_partials(self) -> None:
        for path in self.folder.glob("step_*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _warn_once(self, message: str) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.warn(message)


def problem_of(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with the checkpoint at `path`, or None. Without `hashes` only sizes count."""
    try:
        marker = (path / MARKER).read_text(encoding="utf-8").strip()
        text = (path / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != marker:
            return f"{MANIFEST} does not match {MARKER}"
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            return (
                f"another version of moesaic wrote it (format {manifest['format']}, this one reads {FORMAT}): "
                "begin a new run from a model folder, with --init"
            )
        for name, expected in manifest["files"].items():
            file = path / name
            if (size := file.stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if hashes and sha256_of(file) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        return "it was never completed" if missing == MARKER else f"{missing} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


_REMEDY = "the recipe's model or optimizer changed since it was saved: use the run's own recipe.toml"


def _compare(path: Path, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        entry = stored.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"checkpoint {path} has no tensor {name!r}; {_REMEDY}")
        if entry.size != tensor.shape or entry.properties.dtype != tensor.dtype:
            raise CheckpointError(
                f"checkpoint {path}: tensor {name!r} is {tuple(entry.size)} {entry.properties.dtype} there "
                f"and {tuple(tensor.shape)} {tensor.dtype} here; {_REMEDY}"
            )
    if left := sorted(stored.keys() - tensors.keys()):
        raise CheckpointError(f"checkpoint {path} holds {left[0]!r}, which has no place here; {_REMEDY}")


def _on_first_rank(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give its result, or its OSError, to all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except OSError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[bool]:
    """Whether there is no process group, without torch's warning that there is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield not dist.is_initialized()


def _interrupted(error: BaseException) -> bool:
    """Whether torch wrapped a Ctrl-C, which is no failure of the disk."""
    wrapped = error.failures.values() if isinstance(error, CheckpointException) else ()
    return any(isinstance(cause, KeyboardInterrupt | SystemExit) for cause, _ in wrapped)


def _cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    # A disk that fills up within a tensor reaches us as torch's complaint about a position in its archive.
    first: BaseException | None = error
    while first is not None and not isinstance(first, OSError):
        first = first.__cause__ or first.__context__
    error = first or error
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _pinned(path: Path) -> bool:
    return bool(json.loads((path / MANIFEST).read_bytes())["pinned"])
