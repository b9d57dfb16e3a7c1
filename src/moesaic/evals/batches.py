"""Which continuations are computed together: a plan that counts tokens, without torch.

Two ways lead to the same numbers. Packed: each row is context and continuation, rows stand end to end, nothing is
padded. Shared: contexts of similar length are computed once, then every continuation after a copy of the cache of
its context; rows are padded and what is longer than the shortest context is computed again. Short choices after a
common question favour the second, long ones the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

PASS = 32  # tokens: what a pass costs besides its own, for it reads all weights; measured on one CPU core
CACHED = 4  # a batch may hold this many times a pass's tokens in its cache

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Inputs that are computed once: a context and a continuation without its last token."""

    context: Ids
    inputs: Ids
    asked: list[tuple[int, Ids]] = field(default_factory=list)
    """(request, continuation) of all that share these inputs: they differ in the last token at most."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows that stand end to end in one pass."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(len(row.inputs) for row in self.rows)


@dataclass(frozen=True)
class SharedBatch:
    """Groups of rows with a common context, of which the first `shared` tokens are computed once a group."""

    groups: list[list[Row]]

    @property
    def shared(self) -> int:
        """Tokens: all but the last of the shortest context."""
        return min(len(group[0].context) for group in self.groups) - 1

    @cached_property
    def passes(self) -> list[list[tuple[int, Row]]]:
        """(group, row) in passes of rows of similar length: a row joins if padding costs less than a pass."""
        rows = [(number, row) for number, group in enumerate(self.groups) for row in group]
        passes: list[list[tuple[int, Row]]] = []
        for number, row in sorted(rows, key=lambda pair: len(pair[1].inputs)):
            if passes and len(passes[-1]) * (len(row.inputs) - len(passes[-1][-1][1].inputs)) <= PASS:
                passes[-1].append((number, row))
            else:
                passes.append([(number, row)])
        return passes

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        after = sum(len(rows) * (len(rows[-1][1].inputs) - self.shared) for rows in self.passes)
        return len(self.groups) * self.shared + after

    @property
    def cost(self) -> int:
        """Tokens, and what passes cost besides."""
        return self.tokens + PASS * (1 + len(self.passes))

    def fits(self, tokens_a_pass: int) -> bool:
        """Whether no pass is larger than that, and its cache not larger than `CACHED` times that."""
        widths = [(len(rows), len(rows[-1][1].inputs)) for rows in self.passes]
        return len(self.groups) * self.shared <= tokens_a_pass and all(
            n * (width - self.shared) <= tokens_a_pass and n * width <= CACHED * tokens_a_pass for n, width in widths
        )


def plan(requests: Sequence[tuple[Ids, Ids]], tokens_a_pass: int) -> list[PackedBatch | SharedBatch]:
    """Batches in which each (context, continuation) occurs once, none above `tokens_a_pass` but single long rows."""
    groups = _groups(requests)
    shared, packed = [], [group for group in groups if len(group) == 1 or len(group[0].context) == 1]
    several = [group for group in groups if len(group) > 1 and len(group[0].context) > 1]
    for batch in _similar(several, tokens_a_pass):
        if batch.fits(tokens_a_pass) and batch.cost < sum(len(row.inputs) for group in batch.groups for row in group):
            shared.append(batch)
        else:
            packed += batch.groups
    return [*shared, *_end_to_end([row for group in packed for row in group], tokens_a_pass)]


def _groups(requests: Sequence[tuple[Ids, Ids]]) -> list[list[Row]]:
    """Rows by context; requests with the same inputs become one row."""
    contexts: dict[Ids, dict[Ids, Row]] = {}
    for number, (context, continuation) in enumerate(requests):
        rows = contexts.setdefault(context, {})
        inputs = continuation[:-1]
        if inputs not in rows:
            rows[inputs] = Row(context, context + inputs)
        rows[inputs].asked.append((number, continuation))
    return [list(rows.values()) for rows in contexts.values()]


def _similar(groups: list[list[Row]], tokens_a_pass: int) -> list[SharedBatch]:
    """The cheapest way to put groups, sorted by the length of their contexts, into batches.

    Groups of one length stay together as far as they fit; over these units the best last cut before each is found
    from the best cuts before.
    """
    units: list[SharedBatch] = []
    for group in sorted(groups, key=lambda g: len(g[0].context)):
        joined = SharedBatch([*(units[-1].groups if units else ()), group])
        if units and len(units[-1].groups[0][0].context) == len(group[0].context) and joined.fits(tokens_a_pass):
            units[-1] = joined
        else:
            units.append(SharedBatch([group]))
    best: list[tuple[int, list[SharedBatch]]] = [(0, [])]
    for end in range(1, len(units) + 1):
        batch, found = units[end - 1], (best[end - 1][0] + units[end - 1].cost, [*best[end - 1][1], units[end - 1]])
        for start in range(end - 2, -1, -1):
            batch = SharedBatch([*units[start].groups, *batch.groups])
            if not batch.fits(tokens_a_pass):
                break
            if best[start][0] + batch.cost < found[0]:
                found = (best[start][0] + batch.cost, [*best[start][1], batch])
        best.append(found)
    return best[-1][1]


def _end_to_end(rows: list[Row], tokens_a_pass: int) -> list[PackedBatch]:
    """Rows of similar length together, longest first, so that the time left is not underestimated."""
    batches: list[PackedBatch] = []
    room = 0
    for row in sorted(rows, key=lambda row: -len(row.inputs)):
        if len(row.inputs) > room:
            batches.append(PackedBatch([]))
            room = max(tokens_a_pass, len(row.inputs))
        batches[-1].rows.append(row)
        room -= len(row.inputs)
    return batches
