"""Which documents a stage reads, and in which order: a pure function of (seed, stage, window).

A source is an endless row of *ordinals*: ordinal k is document `permutation(epoch)[k % n]` of epoch `k // n`,
and its cap is `epochs x n`. A window takes the next few ordinals of each source, in proportion to its rate; a
source that reaches its cap leaves and the others share its room. Everything is integer arithmetic, so no run
ever drifts, and any window can be computed without the ones before it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MixedSource:
    """What the mixture needs to know of a source."""

    name: str
    documents: int
    """Documents in one epoch."""
    input_tokens: int
    """Inputs in one epoch. Tokens."""
    epochs: int
    """Times each document may be seen in the whole run."""
    start: int = 0
    """First ordinal of this stage: where the stage before stopped."""

    @property
    def cap(self) -> int:
        """Ordinal at which the source ends."""
        return self.documents * self.epochs


@dataclass(frozen=True)
class _Segment:
    """Windows from `first` on, with the same sources and rates."""

    first: int
    starts: dict[str, int]
    rates: dict[str, Fraction]  # documents per window


class Mixture:
    """Ordinals of each window. State-free: `window(w)` may be asked in any order."""

    def __init__(
        self,
        sources: Sequence[MixedSource],
        window_tokens: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Windows of about `window_tokens` tokens.

        `weights` are shares of tokens by source; without them a source's share is what it has left (tokens x
        epochs), so that all end together.
        """
        self.sources = tuple(s for s in sources if s.documents and s.input_tokens)
        self._caps = {s.name: max(s.cap, s.start) for s in self.sources}
        self._segments, self.windows = self._plan(window_tokens, weights)
        self._firsts = [segment.first for segment in self._segments]

    def window(self, index: int) -> dict[str, range]:
        """Ordinals that window `index` takes of each source; empty ranges after the end."""
        if index >= self.windows:
            return {name: range(cap, cap) for name, cap in self._caps.items()}
        segment = self._segments[bisect_right(self._firsts, index) - 1]
        step = index - segment.first
        return {
            s.name: range(self._at(segment, s.name, step), self._at(segment, s.name, step + 1)) for s in self.sources
        }

    def _at(self, segment: _Segment, name: str, step: int) -> int:
        """First ordinal of `name` in the segment's window number `step`."""
        rate = segment.rates.get(name, Fraction(0))
        return min(segment.starts[name] + rate.numerator * step // rate.denominator, self._caps[name])

    def _plan(self, window_tokens: int, weights: Mapping[str, float] | None) -> tuple[list[_Segment], int]:
        """Segments between the ends of sources, and the number of windows until all have ended."""
        starts = {s.name: s.start for s in self.sources}
        segments: list[_Segment] = []
        first = 0
        while active := [s for s in self.sources if starts[s.name] < self._caps[s.name]]:
            # Documents per window, in any unit: a share of tokens divided by tokens per document, or what is
            # left.
            if weights is None:
                pull = {s.name: Fraction(self._caps[s.name] - starts[s.name]) for s in active}
            else:
                pull = {s.name: Fraction(str(weights[s.name])) * s.documents / s.input_tokens for s in active}
            tokens = sum(pull[s.name] * s.input_tokens / s.documents for s in active)
            rates = {name: p * window_tokens / tokens for name, p in pull.items()}
            if (total := sum(rates.values())) < 1:  # documents longer than a window: one at a time
                rates = {name: r / total for name, r in rates.items()}
            segment = _Segment(first, dict(starts), rates)
            # The first source to end closes the segment; at its last window the others stop where they are.
            length = min(
                -(-(self._caps[s.name] - starts[s.name]) * rates[s.name].denominator // rates[s.name].numerator)
                for s in active
            )
            segments.append(segment)
            starts = {name: self._at(segment, name, length) for name in starts}
            first += length
        return segments, first


def document(seed: int, source: MixedSource, ordinal: int) -> int:
    """Document that `ordinal` of `source` stands for."""
    epoch, place = divmod(ordinal, source.documents)
    return int(permutation(seed, source.name, epoch, source.documents)[place])


@lru_cache(maxsize=16)
def permutation(seed: int, name: str, epoch: int, documents: int) -> NDArray[np.int64]:
    """Order of the documents of one epoch, int64 [documents]."""
    return shuffled(documents, seed, "order", name, epoch)


def shuffled(n: int, seed: int, *names: object) -> NDArray[np.int64]:
    """The numbers below `n` in the order called `names`, int64 [n]; the same on every machine.

    Sorts raw PCG64 output, whose stream NumPy keeps between versions; `Generator.permutation` may change.
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=16).digest()
    keys = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(n)
    return np.argsort(keys, kind="stable")
