"""From what a recipe names to documents: folders, files, archives, packages, Hugging Face datasets.

A file is text that must be UTF-8. In a folder or package a file that is not (or that holds NUL bytes) is
skipped and counted in `skipped`, because trees of text contain pictures; a file that was named, and any table
of rows, is an error that names file and byte. Nothing is ever unpacked to disk or imported.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moesaic.data.chat import Message
from moesaic.data.files import Entry, entries_of, read_text
from moesaic.data.packages import STDLIB, check_sha256, locate_package
from moesaic.data.rows import read_rows
from moesaic.errors import DataError
from moesaic.recipe import Source

CORPUS = Path(__file__).parent / "corpus"
# fmt: off
CODE = frozenset((
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".js",
    ".mjs", ".ts", ".tsx", ".jsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".swift", ".cs", ".sh",
    ".bash", ".sql", ".hs", ".ml", ".ex", ".erl", ".clj", ".zig", ".nim", ".html", ".css", ".scss", ".vue",
    ".toml", ".yaml", ".yml", ".cmake", ".proto",
))
TEXT = frozenset((".txt", ".md", ".rst", ".text", ".markdown", ".org", ".tex", ".adoc"))
# fmt: on
ROWS = frozenset((".jsonl", ".ndjson", ".parquet"))
EVERYTHING = "**/*"


@dataclass(frozen=True)
class Document:
    """One document: a text or a conversation."""

    text: str | None
    """The text, unless it is a conversation."""
    messages: list[Message] | None
    """The turns, each {role, content}, unless it is a text."""
    origin: str
    """Where it came from, for messages to people."""

    @property
    def content(self) -> str:
        """What filters and hashes look at: the text, or the turns' contents, a line each."""
        return self.text if self.text is not None else "\n".join(m["content"] for m in self.messages or ())


def read_documents(source: Source, home: Path, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Every document of `source`, in a fixed order. Packages are downloaded into `home`/packages.

    `skipped` counts files that were passed over, by reason. Raises DataError: nothing there, wrong checksum,
    not UTF-8.
    """
    skipped = Counter() if skipped is None else skipped
    empty = True
    for document in _documents(source, home, skipped):
        empty = False
        yield document
    if empty:
        passed = ", ".join(f"{n} {why}" for why, n in sorted(skipped.items()))
        raise DataError(
            f"source {source.name!r} ({source.path or source.package}) holds no document"
            + (f" (passed over: {passed})" if passed else "")
            + "; check path, files, kind and format"
        )


def locate(source: Source, home: Path) -> Path:
    """Folder or file behind `source`, with its checksum verified. Raises DataError. Not for `hf:`."""
    if source.package is not None:
        return locate_package(source, home)
    assert source.path is not None
    if source.path.startswith("builtin:"):
        path = CORPUS / f"{source.path.removeprefix('builtin:')}.jsonl.xz"
        if not path.is_file():
            known = sorted(p.name.removesuffix(".jsonl.xz") for p in CORPUS.glob("*.jsonl.xz"))
            raise DataError(f"source {source.name!r}: no built-in corpus {source.path!r}; there is {', '.join(known)}")
    else:
        path = Path(source.path)
    if not path.exists():
        raise DataError(f"source {source.name!r}: {path} does not exist; change its path in the recipe")
    if path.is_file():
        check_sha256(path, source.sha256, f"source {source.name!r}")
    return path


def fingerprint(source: Source, home: Path) -> str:
    """Changes when the files behind `source` do (names, sizes, times); pinned and remote sources answer with
    their name."""
    if source.package is not None or source.sha256 is not None or not source.path or source.path.startswith("hf:"):
        return source.package or source.sha256 or source.path or ""
    listing = hashlib.sha256()
    for entry in entries_of(locate(source, home)):
        listing.update(f"{entry.name}\0{entry.stamp}\0".encode())
    return listing.hexdigest()


def _documents(source: Source, home: Path, skipped: Counter[str]) -> Iterator[Document]:
    if source.path is not None and source.path.startswith("hf:"):
        yield from _from_hub(source)
        return
    path = locate(source, home)
    entries = entries_of(path, source.files, skip_folders=_skipped_folders(source))
    if path.is_file() and path.suffix not in (".whl", ".zip"):
        for entry in entries:
            yield from _read(source, entry, named=True, skipped=skipped)
        return
    for entry in entries:
        if source.files == EVERYTHING and not _wanted(source, entry):
            skipped["of another kind"] += 1
            continue
        yield from _read(source, entry, named=False, skipped=skipped)


def _skipped_folders(source: Source) -> frozenset[str]:
    if source.package == STDLIB:
        return frozenset(("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"))
    return frozenset(("__pycache__", ".git", "node_modules"))


def _wanted(source: Source, entry: Entry) -> bool:
    """Whether a file of a folder is meant when `files` was left open: by its ending and the kind of the
    source."""
    endings = {"text": TEXT | ROWS, "code": CODE | ROWS, "chat": ROWS | {".json"}}[source.kind]
    return entry.ending in endings


def _read(source: Source, entry: Entry, named: bool, skipped: Counter[str]) -> Iterator[Document]:
    if source.format == "chitchat" or entry.ending in ROWS or source.format in ("messages", "sharegpt", "alpaca"):
        for text, messages, place in read_rows(source, entry):
            yield Document(text, messages, f"{entry.name}:{place}")
        return
    text = read_text(entry, strict=named)
    if text is None:
        skipped["not UTF-8 text"] += 1
    elif source.format == "lines":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield Document(line, None, f"{entry.name}:{number}")
    elif text.strip():
        yield Document(text, None, entry.name)


def _from_hub(source: Source) -> Iterator[Document]:
    """Stream the train split of a Hugging Face dataset; the only source that is fetched by name without a
    checksum."""
    from moesaic.data.rows import row_document

    assert source.path is not None
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"source {source.name!r}: {source.path} needs the extra: pip install 'moesaic[hf]'") from error
    name = source.path.removeprefix("hf:")
    try:
        rows: Iterable[dict[str, object]] = load_dataset(name, split="train", streaming=True)
        for number, row in enumerate(rows):
            text, messages = row_document(source, row, f"{name} row {number}")
            yield Document(text, messages, f"{name}:{number}")
    except (OSError, ValueError) as error:
        raise DataError(f"source {source.name!r}: cannot read {source.path}: {error}") from error
