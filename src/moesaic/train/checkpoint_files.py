"""Checkpoints as folders: born partial, complete at once, verified before they are believed.

A folder `step_00000123/` holds:

    __0_0.distcp  one file per rank  tensors, written by torch.distributed.checkpoint
    .metadata                        where each tensor lies in those files
    extra.json                       what the caller adds (step, tokens, ledger, loader, hashes)
    manifest.json                    size and sha256 of all of the above
    COMMITTED                        sha256 of the manifest
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.durable import sha256_of, sync_folder, write_durably

FORMAT = 3  # of what a checkpoint holds; raised when a run of an older one could not go on
MANIFEST, MARKER, EXTRA, METADATA = "manifest.json", "COMMITTED", "extra.json", ".metadata"
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")

Fingerprints = dict[str, dict[str, Any]]  # file name -> {"bytes": size, "sha256": hex}


class CheckpointFiles:
    """The folder `checkpoints/`, written by one process."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Keep the newest `keep` checkpoints besides pinned ones."""
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies once it is committed."""
        return self.folder / f"step_{step:08d}"

    def partial(self, step: int) -> Path:
        """Where it lies until then."""
        return self.folder / f"{self.path(step).name}.partial"

    def begin(self, step: int) -> None:
        """Make room for a new one: an empty partial folder, and no other partial."""
        self.remove_partials()
        self.partial(step).mkdir(parents=True)

    def commit(self, step: int, pin: bool, extra: bytes, tensors: Mapping[str, dict[str, Any]]) -> int:
        """Turn the partial folder, which holds `tensors` and `.metadata`, into the checkpoint; its size in bytes.

        Whoever dies in here leaves the checkpoint of that step as it was before, or the new one.
        """
        partial, final = self.partial(step), self.path(step)
        write_durably(partial / EXTRA, extra)
        files = {**tensors, **{name: fingerprint(partial / name) for name in (METADATA, EXTRA)}}
        content = {"format": FORMAT, "step": step, "pinned": pin, "files": files}
        manifest = json.dumps(content, indent=1).encode()
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
        marker = hashlib.sha256(manifest).hexdigest().encode()
        write_durably(final / MARKER, marker)
        sync_folder(final)
        shutil.rmtree(aside, ignore_errors=True)
        self._prune(step)
        return len(manifest) + len(marker) + sum(int(f["bytes"]) for f in files.values())

    def newest_first(self) -> list[Path]:
        """All checkpoint folders, good or bad; of a step saved twice the second save first."""
        found = [p for p in self.folder.glob("step_*") if p.is_dir() and _NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: (_step(p), not p.name.endswith(".replaced")), reverse=True)

    def remove_partials(self) -> None:
        """Remove what saves that did not end have left."""
        for path in self.folder.glob("step_*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, newest_step: int) -> None:
        good = 0
        for path in self.newest_first():
            abandoned = _step(path) > newest_step
            intact = not abandoned and problem_of(path, hashes=False) is None
            good += intact
            if not intact or (good > self.keep and not _pinned(path)):
                # The marker goes first: a removal cut short must not look like damage.
                (path / MARKER).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)


def problem_of(path: Path, hashes: bool = True, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with the checkpoint at `path`, or None. Without `hashes` only sizes count.

    Of several ranks each hashes its share of the files.
    """
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
        if missing := {METADATA, EXTRA} - manifest["files"].keys():
            return f"{MANIFEST} does not list {missing.pop()}"
        for i, (name, expected) in enumerate(manifest["files"].items()):
            file = path / name
            if (size := file.stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if hashes and i % ranks == rank and sha256_of(file) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        missing_file = Path(str(error.filename)).name
        return "it was never completed" if missing_file == MARKER else f"{missing_file} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} or {MARKER} is not what moesaic writes"
    return None


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and checksum, as the manifest has them."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def fingerprints_of_rank(folder: Path, rank: int) -> Fingerprints:
    """Those of the files of tensors that a rank has written."""
    return {file.name: fingerprint(file) for file in sorted(folder.glob(f"__{rank}_*.distcp"))}


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _pinned(path: Path) -> bool:
    return bool(json.loads((path / MANIFEST).read_bytes())["pinned"])
