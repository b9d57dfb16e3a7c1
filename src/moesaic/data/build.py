"""Sources -> filters -> tokens -> shards, in one folder that appears when it is complete.

    tokenizer/            a standard Hugging Face tokenizer folder
    train/NAME.*          documents to learn from, by source (`shards`)
    held_out/NAME.*       documents never trained on, chosen by the hash of their text
    manifest.json         counts, licences, what was dropped, checksums of all files
    README.md             the same for people: the data card

The folder's name carries a hash of the data part of the recipe, the vocabulary and the local files, so a
changed recipe or a changed file builds anew and an unchanged one is opened as it is.
"""

import errno
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.data.card import data_card
from moesaic.data.chat import encode_flat
from moesaic.data.dedup import NearDuplicates
from moesaic.data.folder import FORMAT, MANIFEST, DataFolder
from moesaic.data.packages import STDLIB
from moesaic.data.shards import ShardWriter, file_sha256
from moesaic.data.sources import Document, fingerprint
from moesaic.data.spool import Spool
from moesaic.data.tokenizer import Tokenizer, train_tokenizer
from moesaic.errors import DataError
from moesaic.recipe import Recipe, Source

Progress = Callable[[str], None]
_BATCH = 512  # documents encoded in one call


def build_data(recipe: Recipe, home: Path, progress: Progress | None = None) -> DataFolder:
    """Build the data of `recipe` under `home`, or open it when it is there already. `progress` hears one line
    per step.

    Nothing appears under its final name before it is complete. Raises DataError.
    """
    say = progress or (lambda line: None)
    target = data_path(recipe, home)
    if (target / MANIFEST).exists():
        return DataFolder.open(target, verify=True)
    scratch: Path | None = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=home, prefix=".building-"))
        _build(recipe, home, scratch, target.name, say)
        try:
            (scratch / "folder").rename(target)
        except OSError:
            if not (target / MANIFEST).exists():  # else another process was faster, with the same result
                raise
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "check that it can be written"
        raise DataError(
            f"cannot write data under {home}: {error.strerror or error}; {hint} or choose another home"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return DataFolder.open(target)


def data_path(recipe: Recipe, home: Path) -> Path:
    """Folder that `build_data` makes or opens. Raises DataError when a local source does not exist."""
    parts: list[Any] = [FORMAT, recipe.data.model_dump(mode="json"), recipe.model.vocab_size]
    parts += [fingerprint(source, home) for source in recipe.data.sources]
    if recipe.tokenizer is not None:
        parts.append(file_sha256(_tokenizer_file(recipe, recipe.tokenizer)))
    if any(source.package == STDLIB for source in recipe.data.sources):
        parts.append(sys.version)
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return home / f"{recipe.name}-{digest[:8]}"


def _build(recipe: Recipe, home: Path, scratch: Path, name: str, say: Progress) -> None:
    out = scratch / "folder"
    spools = []
    for number, source in enumerate(recipe.data.sources):
        say(f"{source.name}: reading {source.path or source.package}")
        tick = _ticker(say, source.name)
        spools.append(Spool(source, recipe.data, home, scratch / f"spool-{number}", tick))
    _select(spools, recipe, say)
    tokenizer = _tokenizer(recipe, spools, say)
    tokenizer.save(out / "tokenizer")
    _keep_settings(recipe.tokenizer, out / "tokenizer")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "recipe": recipe.name,
        "vocab_size": len(tokenizer),
    }
    manifest["sources"] = []
    for spool in spools:
        say(f"{spool.source.name}: encoding {int(spool.keep.sum()):,} documents")
        manifest["sources"].append(_describe(spool, _encode(spool, tokenizer, out)))
    (out / "README.md").write_text(data_card(manifest), encoding="utf-8")
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    manifest["files"] = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _ticker(say: Progress, name: str) -> Callable[[int], None]:
    return lambda read: say(f"{name}: {read:,} documents read")


def _select(spools: list[Spool], recipe: Recipe, say: Progress) -> None:
    """Drop duplicates and what is over the byte limits, and choose what is held out."""
    names = np.concatenate([spool.names for spool in spools])
    first = np.zeros(len(names), np.bool_)
    first[np.unique(names, return_index=True)[1]] = True  # return_index is the first occurrence
    ends = np.cumsum([len(spool.names) for spool in spools])
    # Conversations are compared exactly only: generated ones ("What is 3 + 4?") are alike by design, and not
    # duplicates.
    alike = NearDuplicates(recipe.data.dedup_threshold) if recipe.data.dedup_threshold else None
    for spool, end in zip(spools, ends, strict=True):
        spool.drop(~first[end - len(spool.names) : end], "exact duplicate")
        if spool.source.max_bytes is not None:
            spool.drop(~spool.within(spool.source.max_bytes, spool.keep), "beyond max_bytes")
        if alike is not None and spool.source.kind != "chat":
            say(f"{spool.source.name}: looking for near-duplicates among {int(spool.keep.sum()):,} documents")
            seen = np.zeros(len(spool.keep), np.bool_)
            for index, document in spool.documents(spool.keep):
                seen[index] = alike.seen(document.content)
            spool.drop(seen, "near-duplicate")
        if not spool.keep.any():
            why = ", ".join(f"{n} {reason}" for reason, n in spool.dropped.most_common())
            raise DataError(
                f"source {spool.source.name!r}: all {spool.read} documents were dropped ({why}); "
                "change data.min_chars, dedup_threshold or the source"
            )
        threshold = np.uint64(int(recipe.data.held_out * 2**64))
        held_out = spool.keep & (spool.names < threshold)
        if not (spool.keep & ~held_out).any():  # a handful of documents, all held out by chance: train on them
            held_out[:] = False
        spool.held_out = held_out


def _tokenizer(recipe: Recipe, spools: list[Spool], say: Progress) -> Tokenizer:
    vocab_size = recipe.model.vocab_size
    if recipe.tokenizer is None:
        say(f"training a tokenizer of {vocab_size:,} entries")
        return train_tokenizer(_sample(spools), vocab_size)
    tokenizer = Tokenizer.load(Path(recipe.tokenizer))
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"the tokenizer {recipe.tokenizer} has {len(tokenizer)} entries, "
            f"model.vocab_size = {vocab_size}; "
            f"set model.vocab_size = {len(tokenizer)} or more"
        )
    return tokenizer


def _tokenizer_file(recipe: Recipe, path: str) -> Path:
    """tokenizer.json of a given tokenizer. Raises DataError when it is not there."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        hint = "the first lines of the recipe say how to make it" if recipe.data.tokenizer is None else "check the path"
        raise DataError(f"no tokenizer at {file}, which recipe {recipe.name!r} names; {hint}")
    return file


def _keep_settings(given: str | None, folder: Path) -> None:
    """Beside a given tokenizer the files that other engines read with it, as they are."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"):
        if given is not None and (Path(given) / name).is_file():
            shutil.copyfile(Path(given) / name, folder / name)


def _sample(spools: list[Spool]) -> Iterator[str]:
    """Training text for the tokenizer: as many bytes of each source as it states, never held-out ones."""
    for spool in spools:
        chosen = spool.within(spool.source.tokenizer_bytes, spool.keep & ~spool.held_out)
        for _, document in spool.documents(chosen):
            if document.text is not None:
                yield document.text
            for message in document.messages or ():
                # With its role in front, so that each role becomes one token.
                yield f"{message['role']}\n{message['content'].strip()}"


def _encode(spool: Spool, tokenizer: Tokenizer, out: Path) -> dict[str, dict[str, int]]:
    """Write the source's two shards; returns documents, tokens, learned tokens and bytes of each."""
    masked = spool.source.kind == "chat"
    shards = {p: ShardWriter(out / p / spool.source.name, len(tokenizer), masked) for p in ("train", "held_out")}
    counted = ("documents", "tokens", "input_tokens", "bytes") + (("learned_tokens",) if masked else ())
    totals = {part: dict.fromkeys(counted, 0) for part in shards}
    for group in _groups(spool.documents(spool.keep)):
        group.sort(key=lambda pair: pair[1].messages is None)  # stable: conversations, then texts
        index = np.array([i for i, _ in group])
        tokens, mask, lengths = _encode_group([document for _, document in group], tokenizer)
        for part, wanted in (("train", False), ("held_out", True)):
            mine = spool.held_out[index] == wanted
            here = np.repeat(mine, lengths)
            shards[part].add(tokens[here], lengths[mine], spool.sizes[index[mine]], mask[here] if masked else None)
            total = totals[part]
            total["documents"] += int(mine.sum())
            total["tokens"] += int(here.sum())
            total["input_tokens"] += int(here.sum() - mine.sum())
            total["bytes"] += int(spool.sizes[index[mine]].sum())
            if masked:
                total["learned_tokens"] += int(mask[here].sum())
    for shard in shards.values():
        shard.close()
    return totals


def _groups(documents: Iterator[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    """Lists of `_BATCH` documents (itertools.batched came only with Python 3.12)."""
    while group := list(islice(documents, _BATCH)):
        yield group


def _encode_group(
    documents: list[Document], tokenizer: Tokenizer
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]:
    """Tokens and loss mask end to end, and lengths: first the conversations, then the texts, each with
    end-of-text."""
    tokens, mask, lengths = encode_flat(tokenizer, [d.messages for d in documents if d.messages is not None])
    texts = tokenizer.encode_batch([d.text for d in documents if d.text is not None])
    begin = tokenizer.prefix_ids  # what stands before a text when it is continued
    flat = np.fromiter(chain.from_iterable([*begin, *ids, tokenizer.eos_id] for ids in texts), np.int32)
    return (
        np.concatenate([tokens, flat]),
        np.concatenate([mask, np.ones(len(flat), np.uint8)]),
        np.array(lengths + [len(begin) + len(ids) + 1 for ids in texts], np.int64),
    )


def _describe(spool: Spool, totals: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The source's entry in the manifest."""
    source: Source = spool.source
    return {
        "name": source.name,
        "kind": source.kind,
        "origin": source.package or source.path,
        "sha256": source.sha256,
        "licence": source.licence,
        "epochs": source.epochs,
        "read": spool.read,
        "dropped": dict(sorted(spool.dropped.items())),
        "files_passed_over": dict(sorted(spool.skipped.items())),
        **totals,
    }
