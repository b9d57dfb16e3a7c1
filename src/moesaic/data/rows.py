"""Tables of rows (jsonl, parquet, the chitchat file) as texts and conversations."""

import json
import lzma
from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.data.chat import Message, read_chitchat, read_row, row_format
from moesaic.data.files import Entry, not_utf8
from moesaic.errors import DataError
from moesaic.recipe import Source

Row = tuple[str | None, list[Message] | None]


def read_rows(source: Source, entry: Entry) -> Iterator[tuple[str | None, list[Message] | None, str]]:
    """(text, messages, place) of each row of a file; one of text and messages is None. Raises DataError."""
    if source.format == "chitchat":
        with entry.open() as file:
            try:
                for key, messages in read_chitchat(json.load(file)):
                    yield None, messages, key
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{entry.name} is not the chitchat-dataset file: {error!r}") from error
    elif entry.ending == ".parquet":
        for number, row in enumerate(_parquet(source, entry)):
            yield *row_document(source, row, f"{entry.name}: row {number}"), str(number)
    else:
        for number, row in _jsonl(entry):
            yield *row_document(source, row, f"{entry.name}: line {number}"), str(number)


def row_document(source: Source, row: object, place: str) -> Row:
    """Text or messages of one row, by the source's format or the row's keys. Raises DataError that names the
    place."""
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: a row must be a JSON object, not {type(row).__name__}")
    form = source.format
    if form in ("auto", "lines", "document"):
        has_text = isinstance(row.get(source.field), str)
        detected = row_format(row) if source.kind == "chat" or not has_text else None
        if detected is None:
            if source.kind == "chat" or not has_text:
                wanted = "messages, conversations, instruction/output or question/answer"
                raise DataError(
                    f"{place}: keys {sorted(map(str, row))[:8]} hold no "
                    + (wanted if source.kind == "chat" else f"text under {source.field!r}")
                    + f"; set field or format of source {source.name!r}"
                )
            return row[source.field], None
        form = detected  # type: ignore[assignment]
    try:
        return None, read_row(row, form)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{place}: not a row of format {form!r}: {error!r}; set format of source {source.name!r}"
        ) from error


def _jsonl(entry: Entry) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is not blank."""
    offset = 0
    with entry.open() as file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(not_utf8(entry.name, error.start, line, offset)) from error
                except ValueError as error:
                    raise DataError(f"{entry.name}: line {number} is not JSON: {error}") from error
                offset += len(line)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{entry.name} is damaged ({error}); fetch or write it again") from error


def _parquet(source: Source, entry: Entry) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"source {source.name!r}: {entry.name} needs the extra: pip install 'moesaic[parquet]'"
        ) from error
    import pyarrow as pa

    with entry.open() as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{entry.name} is not a readable parquet file: {error}") from error
