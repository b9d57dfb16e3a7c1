"""Files in folders, archives and compression, behind one small type. Archives are read in place, never
unpacked."""

import gzip
import lzma
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from moesaic.errors import DataError

COMPRESSED = (".xz", ".gz")


@dataclass(frozen=True)
class Entry:
    """A file that can be opened: its name inside its folder or archive, how to open it, and a stamp of its
    version."""

    name: str
    raw: Callable[[], IO[bytes]]
    stamp: str = ""

    @property
    def ending(self) -> str:
        """Lower-case ending without compression: `.jsonl` for `a.jsonl.xz`."""
        path = PurePosixPath(self.name)
        return PurePosixPath(path.stem if path.suffix in COMPRESSED else path.name).suffix.lower()

    def open(self) -> IO[bytes]:
        """The bytes of the file, decompressed. Raises DataError when it cannot be opened."""
        try:
            raw = self.raw()
            match PurePosixPath(self.name).suffix:
                case ".xz":
                    return lzma.open(raw)
                case ".gz":
                    return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
            return raw
        except OSError as error:
            raise DataError(f"cannot open {self.name}: {error.strerror or error}") from error


def entries_of(path: Path, glob: str = "**/*", skip_folders: frozenset[str] = frozenset()) -> Iterator[Entry]:
    """Files of a folder or of a .zip/.whl in sorted order, those that match `glob`; or the file itself."""
    if path.is_file() and path.suffix not in (".whl", ".zip"):
        yield _entry(path, path.name)
        return
    matches = glob_pattern(glob).fullmatch
    if path.is_file():
        yield from _members(path, matches)
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if f not in skip_folders)
        for name in sorted(files):
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            if matches(relative) and file.is_file():
                yield _entry(file, relative)


def read_text(entry: Entry, strict: bool) -> str | None:
    """Text of a file. What is not UTF-8 text is None, or with `strict` a DataError that names the byte."""
    with entry.open() as file:
        try:
            data = file.read()
        except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise DataError(f"{entry.name} is damaged ({error}); fetch or write it again") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if strict:
            raise DataError(not_utf8(entry.name, error.start, data)) from error
        return None
    if "\0" in text:
        if strict:
            raise DataError(
                f"{entry.name}: byte {data.index(0)} is NUL, so this is not text; leave it out or convert it"
            )
        return None
    return text.replace("\r\n", "\n")


def not_utf8(name: str, offset: int, data: bytes, base: int = 0) -> str:
    """The message for a byte that is not UTF-8; `offset` into `data`, which begins at `base` of the file."""
    return (
        f"{name}: byte 0x{data[offset]:02x} at offset {base + offset} is not UTF-8; "
        f"convert the file, for example: iconv -f latin1 -t utf-8 {PurePosixPath(name).name}"
    )


def glob_pattern(glob: str) -> re.Pattern[str]:
    """`**/` is any folders, `*` and `?` stay within a name. pathlib's own full_match came only with Python
    3.13."""
    out = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(out)


def _entry(file: Path, name: str) -> Entry:
    stat = file.stat()
    return Entry(name, lambda: file.open("rb"), f"{stat.st_size} {stat.st_mtime_ns}")


def _members(path: Path, matches: Callable[[str], object]) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if not info.is_dir() and matches(info.filename):
                    yield Entry(info.filename, partial(archive.open, info), f"{info.file_size} {info.CRC}")
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a readable archive ({error}); fetch it again") from error
