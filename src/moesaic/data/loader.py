"""From shards to batches. The state is two numbers: the window, and the sequences already taken from it.

A window is a fixed set of documents (see `mixture`), packed (see `packing`) and shuffled by itself, so batch
k is a pure function of (seed, stage, global sequence index): ranks, restarts and batch sizes do not change
the order. A stage that ends inside a window hands the rest of it on: it is the next stage's first window.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from moesaic.data.batch import Batch, empty_rows, fill_row, to_batch
from moesaic.data.folder import DataFolder
from moesaic.data.mixture import MixedSource, Mixture, document, permutation, shuffled
from moesaic.data.packing import Piece, pack
from moesaic.data.shards import Shard
from moesaic.errors import DataError
from moesaic.recipe import Recipe, Stage

# Sequences a window aims at: enough pieces for best fit to leave under 1 % padding, few enough that the part
# of the last window that a stage does not reach stays small.
WINDOW_SEQUENCES = 128


class Passage(NamedTuple):
    """Inputs `start` to `end` of a document; the label of the last is token `end`."""

    source: str
    document: int
    start: int
    end: int


@dataclass(frozen=True)
class Carry:
    """What a stage leaves to the next: passages of one window at most, whatever the size of the data."""

    ordinals: Mapping[str, int] = field(default_factory=dict)
    """First ordinal of each source that no window has taken."""
    passages: tuple[Passage, ...] = ()
    """What a window had taken and the stage did not reach."""

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"ordinals": dict(self.ordinals), "passages": [list(p) for p in self.passages]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `plain`."""
        return cls(dict(plain["ordinals"]), tuple(Passage(*p) for p in plain["passages"]))


class _Window:
    """One window, packed: sequences of pieces of the listed passages."""

    def __init__(self, passages: Sequence[Passage], sequences: list[list[Piece]]) -> None:
        self.passages, self.sequences = passages, sequences

    def inputs(self, start: int = 0) -> int:
        """Input tokens of the sequences from `start` on."""
        return sum(piece.length for row in self.sequences[start:] for piece in row)

    def left(self, start: int) -> tuple[Passage, ...]:
        """Passages of the sequences from `start` on, neighbours joined again."""
        cut = []
        for piece in (piece for row in self.sequences[start:] for piece in row):
            source, document, first, _ = self.passages[piece.document]
            at = first + piece.start
            cut.append((piece.document, Passage(source, document, at, at + piece.length)))
        joined: list[tuple[int, Passage]] = []
        for number, passage in sorted(cut):
            if joined and joined[-1][0] == number and joined[-1][1].end == passage.start:
                passage = joined.pop()[1]._replace(end=passage.end)
            joined.append((number, passage))
        return tuple(passage for _, passage in joined)


class Loader:
    """Batches of one stage, until every source it reads has reached its epochs."""

    def __init__(
        self,
        folder: DataFolder,
        stage: Stage,
        recipe: Recipe,
        seed: int,
        carry: Carry | None = None,
    ) -> None:
        """`carry`: of the stage before, so that epochs are counted over the whole run."""
        self._carry = carry or Carry()
        self._start = hashlib.sha256(json.dumps(self._carry.plain(), sort_keys=True).encode()).hexdigest()[:16]
        self._stage, self._seed, self._pad = stage, seed, folder.tokenizer.pad_id
        epochs = {source.name: source.epochs for source in recipe.data.sources}
        self._shards: dict[str, Shard] = {name: folder.train[name] for name in stage.sources}
        self._sources = {
            name: MixedSource(name, len(shard), shard.input_tokens, epochs[name], self._carry.ordinals.get(name, 0))
            for name, shard in self._shards.items()
        }
        self.mixture = Mixture(
            list(self._sources.values()),
            WINDOW_SEQUENCES * stage.seq_len,
            dict(stage.weights) if stage.weights else None,
        )
        self._lead = tuple(p for p in self._carry.passages if p.source in self._shards)
        self.windows = self.mixture.windows + (1 if self._lead else 0)
        self._window, self._offset = 0, 0
        self._packed: tuple[int, _Window] | None = None

    def next_batch(self, sequences: int, share: tuple[int, int] = (0, 1)) -> Batch | None:
        """The next `sequences` packed sequences, fewer at the very end, None when nothing is left.

        With `share` (i, n) only the i-th of n equal parts of them is read, filled up with empty sequences where they
        do not divide; counts are still those of all.
        """
        rows: list[tuple[_Window, list[Piece]]] = []
        while len(rows) < sequences and self._window < self.windows:
            window = self._current()
            taken = window.sequences[self._offset : self._offset + sequences - len(rows)]
            rows += [(window, row) for row in taken]
            self._offset += len(taken)
            if self._offset >= len(window.sequences):
                self._window, self._offset = self._window + 1, 0
        return self._batch(rows, *share) if rows else None

    @property
    def available_tokens(self) -> int:
        """Input tokens (no padding) that are still to come; exact."""
        if self._window >= self.windows:
            return 0
        ordinals = self._ordinals(self._window + 1)
        later = sum(self._tokens_from(s, ordinals[s.name].start) for s in self.mixture.sources)
        return self._current().inputs(self._offset) + later

    def carry(self) -> Carry:
        """What the next stage goes on from."""
        touched = self._offset > 0
        ordinals = self._ordinals(self._window + (1 if touched else 0))
        left = [p for p in self._carry.passages if p.source not in self._shards]
        if touched:
            left += self._current().left(self._offset)
        elif self._window == 0:
            left += self._lead
        return Carry({**self._carry.ordinals, **{n: o.start for n, o in ordinals.items()}}, tuple(left))

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, of constant size."""
        return {"window": self._window, "offset": self._offset, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises DataError when that loader began elsewhere."""
        if state["start"] != self._start:
            raise DataError("the checkpoint began at other documents than this stage; use the same recipe and data")
        self._window, self._offset = int(state["window"]), int(state["offset"])

    def _tokens_from(self, source: MixedSource, ordinal: int) -> int:
        """Input tokens of `source` from `ordinal` to its cap."""
        if ordinal >= source.cap:
            return 0
        epoch, place = divmod(ordinal, source.documents)
        lengths = self._shards[source.name].lengths
        whole = (source.epochs - epoch) * source.input_tokens
        if not place:
            return whole
        order = permutation(self._seed, source.name, epoch, source.documents)[:place]
        return whole - int(np.maximum(lengths[order] - 1, 0).sum(dtype=np.int64))

    def _current(self) -> _Window:
        """The window at hand, packed once."""
        if self._packed is None or self._packed[0] != self._window:
            self._packed = (self._window, self._pack(self._window))
        return self._packed[1]

    def _ordinals(self, index: int) -> dict[str, range]:
        """Ordinals of window `index`; what was left by the stage before has none."""
        lead = 1 if self._lead else 0
        if index < lead:
            return {name: range(o.start, o.start) for name, o in self.mixture.window(0).items()}
        return self.mixture.window(index - lead)

    def _passages(self, index: int) -> Sequence[Passage]:
        if index == 0 and self._lead:
            return self._lead
        chosen = [
            (name, document(self._seed, self._sources[name], ordinal))
            for name, ordinals in self._ordinals(index).items()
            for ordinal in ordinals
        ]
        return [Passage(name, i, 0, int(self._shards[name].lengths[i]) - 1) for name, i in chosen]

    def _pack(self, index: int) -> _Window:
        passages = self._passages(index)
        sequences = pack([p.end - p.start + 1 for p in passages], self._stage.seq_len)
        # Best fit sorts by length; training must not.
        order = shuffled(len(sequences), self._seed, "sequences", self._stage.name, index)
        return _Window(passages, [sequences[i] for i in order])

    def _batch(self, rows: list[tuple[_Window, list[Piece]]], part: int, parts: int) -> Batch:
        each = -(-len(rows) // parts)
        arrays = empty_rows(each, self._stage.seq_len, self._pad)
        counts = dict.fromkeys(self._shards, 0)
        for window, row in rows:
            for piece in row:
                counts[window.passages[piece.document].source] += piece.length
        only_assistant = self._stage.loss_on == "assistant"
        for i, (window, row) in enumerate(rows[part * each : (part + 1) * each]):
            docs: dict[int, NDArray[np.generic]] = {}
            masks: dict[int, NDArray[np.generic] | None] = {}
            for piece in row:
                source, number, start, end = window.passages[piece.document]
                shard, here = self._shards[source], slice(start, end + 1)
                mask = shard.mask(number) if only_assistant else None
                docs[piece.document] = shard.doc(number)[here]
                masks[piece.document] = None if mask is None else mask[here]
            fill_row(row, docs, masks, [a[i] for a in arrays])
        return to_batch(arrays, counts, len(rows) if parts > 1 else 0)
