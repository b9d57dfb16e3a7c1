"""The data folder: shards, tokenizer, manifest and card of one recipe, opened and verified."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.data.batch import Batch, empty_rows, fill_row, to_batch
from moesaic.data.packing import pack
from moesaic.data.shards import REMEDY, Shard, file_sha256
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

FORMAT = 1  # of the folder; raise it when shards of an older moesaic must not be reused
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DataFolder:
    """What `build_data` made, open for reading."""

    path: Path
    tokenizer: Tokenizer
    train: dict[str, Shard]
    """Shards to train on, by source."""
    held_out: dict[str, Shard]
    """Shards never trained on, by source; may be empty."""
    manifest: dict[str, Any]
    """Counts, licences and checksums; see `build`."""

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> "DataFolder":
        """Open a finished folder. File sizes are always checked, sha256 of every file with `verify`. Raises
        DataError."""
        file = path / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            files, sources = manifest["files"], [s["name"] for s in manifest["sources"]]
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is not a finished data folder (no {MANIFEST}); run `moesaic data build`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error!r}); {REMEDY}") from error
        if manifest.get("format") != FORMAT:
            raise DataError(f"{path} has format {manifest.get('format')}, this moesaic reads {FORMAT}; {REMEDY}")
        for name, said in files.items():
            _check_file(path / name, said["bytes"], said["sha256"] if verify else None)
        return cls(
            path,
            Tokenizer.load(path / "tokenizer"),
            {s: Shard(path / "train" / s) for s in sources},
            {s: Shard(path / "held_out" / s) for s in sources},
            manifest,
        )

    @property
    def epoch_tokens(self) -> dict[str, int]:
        """Inputs that one epoch of each source holds, for the ledger. Tokens."""
        return {name: shard.input_tokens for name, shard in self.train.items()}


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents, packed, and the bytes that bits per byte divides by."""

    batches: list[Batch]
    bytes: int
    """UTF-8 bytes of the documents: of the text, or of the (trimmed) contents of a dialogue's messages. Roles
    and control tokens count no bytes, but their bits count: bits per byte = sum of all label losses in nats /
    ln 2 / bytes."""
    documents: int


def held_out_sequences(
    folder: DataFolder,
    sources: Sequence[str],
    seq_len: int,
    limit_tokens: int | None = None,
    batch: int = 8,
    loss_on: str = "all",
) -> HeldOut:
    """Held-out documents of `sources` in packed batches of `batch` sequences, always the same ones.

    Whole documents, in shard order, source by source, until `limit_tokens` inputs per source are reached. A
    document longer than `seq_len` is cut and its later pieces see no earlier context, as in training. The
    first token of a document is never a label: for a dialogue that is a control token, for a text about 4
    bytes of the whole.
    """
    docs, masks, names, total = [], [], [], 0
    for name in sources:
        shard, taken = folder.held_out[name], 0
        for i in range(len(shard)):
            if limit_tokens is not None and taken >= limit_tokens:
                break
            docs.append(shard.doc(i))
            masks.append(shard.mask(i) if loss_on == "assistant" else None)
            names.append(name)
            taken += len(docs[-1]) - 1
            total += int(shard.bytes[i])
    rows = pack([len(d) for d in docs], seq_len)
    batches = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        arrays = empty_rows(len(part), seq_len, folder.tokenizer.pad_id)
        counts = dict.fromkeys(sources, 0)
        for i, row in enumerate(part):
            fill_row(
                row,
                {p.document: docs[p.document] for p in row},
                {p.document: masks[p.document] for p in row},
                [a[i] for a in arrays],
            )
            for piece in row:
                counts[names[piece.document]] += piece.length
        batches.append(to_batch(arrays, counts))
    return HeldOut(batches, total, len(docs))


def _check_file(path: Path, size: int, sha256: str | None) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; {REMEDY}")
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes instead of {size}; {REMEDY}")
    if sha256 is not None and file_sha256(path) != sha256:
        raise DataError(f"{path} does not match its checksum, so it was damaged or changed; {REMEDY}")
