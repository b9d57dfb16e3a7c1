"""Results in the model folder: `evaluation.json` keeps them, the model card shows them.

The card's table stands between two marks in the section "Evaluation", written anew from evaluation.json; a later
run of a suite replaces its row, and everything else on the card stays as it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.durable import write_durably
from moesaic.errors import ModelError
from moesaic.evals.evaluate import SuiteResult

RESULTS = "evaluation.json"
CARD = "README.md"
BEGIN, END = "<!-- moesaic eval -->", "<!-- end of moesaic eval -->"
_BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
_SECTION = re.compile(r"^## Evaluation[ \t]*$", re.MULTILINE)
_NEXT = re.compile(r"^##? ", re.MULTILINE)


def keep_results(folder: Path, results: Sequence[SuiteResult]) -> None:
    """Merge `results` into evaluation.json and the card of a model folder. Raises ModelError.

    A result on more items of the same suite stays.

    Both files appear whole or stay as they were.
    """
    rows = _read(folder / RESULTS)
    for result in results:
        if rows.get(result.key, {}).get("items", 0) <= result.row().get("items", 0):  # a sample replaces no whole suite
            rows[result.key] = result.row()
    card = folder / CARD
    try:
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.resolve().name}\n"
        after = with_block(before, block(rows))
        write_durably(folder / RESULTS, (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())
        write_durably(card, after.encode())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"results are not kept in {folder}: {reason}; make it writable, or use --no-card") from error


def block(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of all rows of evaluation.json, between the marks."""
    choices = [row for row in rows.values() if row["suite"] != "bits"]
    texts = [row for row in rows.values() if row["suite"] == "bits"]
    lines = [BEGIN, "Measured with `moesaic eval`, zero-shot; ± is one standard error."]
    if choices:
        lines += ["", "| suite | items | accuracy | by byte | chance |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {row['title']} | {row['items']:,} | {_share(row, 'accuracy')} | {_share(row, 'accuracy_by_byte')} "
            f"| {row['chance']:.1%} |"
            for row in choices
        ]
    if texts:
        lines += ["", "| text | bytes | bits per byte |", "| --- | --- | --- |"]
        lines += [
            f"| {row['title']} | {row['bytes']:,} | {bits_text(row['bits_per_byte'], row['standard_error'])} |"
            for row in texts
        ]
    if notes := [note for row in rows.values() if (note := _overlap_note(row))]:
        lines += ["", *notes]
    return "\n".join([*lines, END])


def with_block(card: str, text: str) -> str:
    """`card` with `text` in place of the block it had, or at the end of its section "Evaluation", new if need be."""
    if _BLOCK.search(card):
        return _BLOCK.sub(lambda _: text, card, count=1)
    section = _SECTION.search(card)
    if section is None:
        return f"{card.rstrip()}\n\n## Evaluation\n\n{text}\n"
    following = _NEXT.search(card, section.end())
    end = following.start() if following else len(card)
    return f"{card[:end].rstrip()}\n\n{text}\n" + (f"\n{card[end:]}" if following else "")


def bits_text(value: float, error: float) -> str:
    """Bits per byte for people; the error is left out where a single window gave none."""
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"


def _share(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.1%} ± {row[f'{name}_error']:.1%}"


def _overlap_note(row: Mapping[str, Any]) -> str | None:
    if "overlap" not in row:
        return None
    found = row["overlap"]
    note = (
        f"- {row['title']}: {found['found']:,} of {found['checked']:,} share 13 words in a row with the training data"
        f" ({found['too_short']:,} too short to check)"
    )
    if "clean" in row:
        clean = row["clean"]
        note += f"; accuracy on the other {clean['items']:,}: {_share(clean, 'accuracy')}"
    return note


def _read(path: Path) -> dict[str, Any]:
    """Rows of an earlier run; none without the file. Raises ModelError when it is not ours."""
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        block(rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} does not hold results of `moesaic eval` ({error!r}); delete it") from error
    found: dict[str, Any] = rows
    return found
