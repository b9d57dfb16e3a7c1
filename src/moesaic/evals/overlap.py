"""Which evaluation texts stand in the training data: common runs of 13 words (Brown et al. 2020, appendix C).

Words are what is left between spaces after lower-casing and dropping punctuation. Runs are compared exactly; hashes
only say where to look. Training documents are decoded a few at a time, so that shards of any size fit in memory.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesaic.data import DataFolder
from moesaic.evals.likelihood import Done

WORDS = 13
EXAMPLES = 3  # kept of each suite
TOKENS_AT_ONCE = 1 << 19  # of training documents, decoded and searched together
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = np.uint64(24)
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_NONE = -1  # a word that no evaluation text has, or the space between texts


@dataclass(frozen=True)
class Match:
    """A run of 13 words that an item shares with a training document."""

    item: str
    source: str
    words: str


@dataclass(frozen=True)
class SuiteOverlap:
    """What was found of one suite."""

    items: int
    too_short: int
    """Items none of whose texts has 13 words: they cannot be checked and count as clean."""
    found: frozenset[str] = frozenset()
    """Ids of items with a run in the training data."""
    examples: tuple[Match, ...] = ()

    @property
    def share(self) -> float:
        """Items found, of those that can be checked; 0 when none can."""
        checked = self.items - self.too_short
        return len(self.found) / checked if checked else 0.0


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _PUNCTUATION.sub("", text.lower()).split()


def find_overlap(
    suites: Mapping[str, Mapping[str, Sequence[str]]], data: DataFolder, *, done: Done | None = None
) -> dict[str, SuiteOverlap]:
    """For each suite (item id -> its texts) the items that share 13 words in a row with a training document.

    `done` is told (training tokens searched, of all).
    """
    wanted = _Runs(
        [(suite, item, text) for suite, items in suites.items() for item, texts in items.items() for text in texts]
    )
    searched, total = 0, sum(shard.tokens for shard in data.train.values())
    matches: dict[str, dict[str, Match]] = {suite: {} for suite in suites}
    for source, texts, tokens in _training_texts(data):
        for suite, item, run in wanted.search(texts):
            matches[suite].setdefault(item, Match(item, source, run))
        searched += tokens
        if done is not None:
            done(searched, total)
    return {
        suite: SuiteOverlap(
            len(items),
            len(items.keys() - wanted.checkable[suite]),
            frozenset(matches[suite]),
            tuple(matches[suite].values())[:EXAMPLES],
        )
        for suite, items in suites.items()
    }


def _training_texts(data: DataFolder) -> Iterator[tuple[str, list[str], int]]:
    """(source, texts of some documents, their tokens) until every training document was there."""
    for source, shard in data.train.items():
        at = 0
        while at < len(shard):
            texts: list[str] = []
            tokens = 0
            while at < len(shard) and (not texts or tokens + shard.lengths[at] <= TOKENS_AT_ONCE):
                ids = shard.doc(at)
                texts.append(data.tokenizer.decode(ids.tolist()))
                tokens += len(ids)
                at += 1
            yield source, texts, tokens


@dataclass
class _Runs:
    """All runs of 13 words of the evaluation texts, sorted by hash."""

    texts: Sequence[tuple[str, str, str]]
    """(suite, item, text)."""
    checkable: dict[str, set[str]] = field(default_factory=dict)
    """By suite: items with at least one run."""

    def __post_init__(self) -> None:
        self._numbers: dict[str, int] = {}
        pieces, owners = [], []
        for owner, (suite, item, text) in enumerate(self.texts):
            numbers = [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]
            self.checkable.setdefault(suite, set())
            if len(numbers) >= WORDS:
                self.checkable[suite].add(item)
            pieces += [*numbers, _NONE]
            owners += [owner] * (len(numbers) + 1)
        self._words, self._owners = np.array(pieces, dtype=np.int32), np.array(owners, dtype=np.int32)
        hashes, places = _hashes(self._words)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]
        self._found = np.zeros(len(places), dtype=bool)
        self._table = np.zeros(1 << int(_TABLE_BITS), dtype=bool)  # most hashes are dismissed by their first bits
        self._table[_first_bits(self._hashes)] = True

    def search(self, texts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """(suite, item, run of words) for each run of the evaluation texts that is found here for the first time."""
        number = self._numbers.get
        numbers = [n for text in texts for n in (*(number(word, _NONE) for word in words_of(text)), _NONE)]
        found = np.array(numbers, dtype=np.int32)
        hashes, places = _hashes(found)
        likely = self._table[_first_bits(hashes)]
        hashes, first = np.unique(hashes[likely], return_index=True)
        places = places[likely][first]
        lows, highs = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        for at, low, high in zip(places, lows, highs, strict=True):
            for k in range(low, high):
                mine = self._places[k]
                run = self._words[mine : mine + WORDS]
                if not self._found[k] and np.array_equal(run, found[at : at + WORDS]):
                    self._found[k] = True
                    suite, item, text = self.texts[self._owners[mine]]
                    yield suite, item, self._spelled(mine, text)

    def _spelled(self, place: int, text: str) -> str:
        """The run at `place` of the evaluation words, which lies in `text`."""
        begin = int(np.searchsorted(self._owners, self._owners[place]))
        return " ".join(words_of(text)[place - begin : place - begin + WORDS])


def _hashes(words: NDArray[np.int32]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Polynomial hashes of all runs of 13 known words, and where they begin."""
    n = max(len(words) - WORDS + 1, 0)
    unknown = np.concatenate([[0], np.cumsum(words == _NONE)])
    known = np.flatnonzero(unknown[WORDS:] == unknown[:n]) if n else np.zeros(0, dtype=np.int64)
    hashes = np.zeros(len(known), dtype=np.uint64)
    for k in range(WORDS):
        hashes = (hashes ^ words[known + k].astype(np.uint64)) * _MULTIPLIER
    return hashes, known


def _first_bits(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return hashes >> (np.uint64(64) - _TABLE_BITS)
