"""From shards to batches. The state is two numbers: the window, and the sequences already taken from it.

A window is a fixed set of documents (see `mixture`), packed (see `packing`) and shuffled by itself, so batch
k is a pure function of (seed, stage, global sequence index): ranks, restarts and batch sizes do not change
the order.
"""

from collections.abc import Mapping
from typing import Any

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


class _Window:
    """One window, packed: sequences of pieces of the listed documents."""

    def __init__(self, documents: list[tuple[str, int]], sequences: list[list[Piece]]) -> None:
        self.documents, self.sequences = documents, sequences

    def inputs(self, start: int = 0) -> int:
        """Input tokens of the sequences from `start` on."""
        return sum(piece.length for row in self.sequences[start:] for piece in row)


class Loader:
    """Batches of one stage, until every source it reads has reached its epochs."""

    def __init__(
        self,
        folder: DataFolder,
        stage: Stage,
        recipe: Recipe,
        seed: int,
        start: Mapping[str, int] | None = None,
    ) -> None:
        """`start`: `end_ordinals()` of the stage before, so that epochs are capped over the whole run."""
        self._start = dict(start or {})
        self._stage, self._seed, self._pad = stage, seed, folder.tokenizer.pad_id
        epochs = {source.name: source.epochs for source in recipe.data.sources}
        self._shards: dict[str, Shard] = {name: folder.train[name] for name in stage.sources}
        self._sources = {
            name: MixedSource(name, len(shard), shard.input_tokens, epochs[name], self._start.get(name, 0))
            for name, shard in self._shards.items()
        }
        self.mixture = Mixture(
            list(self._sources.values()),
            WINDOW_SEQUENCES * stage.seq_len,
            dict(stage.weights) if stage.weights else None,
        )
        self._window, self._offset = 0, 0
        self._packed: tuple[int, _Window] | None = None

    def next_batch(self, sequences: int) -> Batch | None:
        """The next `sequences` packed sequences, fewer at the very end, None when nothing is left."""
        rows: list[tuple[_Window, list[Piece]]] = []
        while len(rows) < sequences and self._window < self.mixture.windows:
            window = self._current()
            taken = window.sequences[self._offset : self._offset + sequences - len(rows)]
            rows += [(window, row) for row in taken]
            self._offset += len(taken)
            if self._offset >= len(window.sequences):
                self._window, self._offset = self._window + 1, 0
        return self._batch(rows) if rows else None

    @property
    def available_tokens(self) -> int:
        """Input tokens (no padding) that are still to come; exact."""
        if self._window >= self.mixture.windows:
            return 0
        taken = self._current().inputs() - self._current().inputs(self._offset)
        ordinals = self.mixture.window(self._window)
        return sum(self._tokens_from(s, ordinals[s.name].start) for s in self.mixture.sources) - taken

    def end_ordinals(self) -> dict[str, int]:
        """Where the next stage goes on in each source: after the last window that was touched."""
        window = self._window + (1 if self._offset else 0)
        ends = {name: ordinals.start for name, ordinals in self.mixture.window(window).items()}
        return {**self._start, **ends}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, of constant size."""
        return {"window": self._window, "offset": self._offset, "start": dict(self._start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises DataError when that loader began elsewhere."""
        if dict(state["start"]) != self._start:
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

    def _pack(self, index: int) -> _Window:
        documents = [
            (name, document(self._seed, self._sources[name], ordinal))
            for name, ordinals in self.mixture.window(index).items()
            for ordinal in ordinals
        ]
        lengths = [int(self._shards[name].lengths[i]) for name, i in documents]
        sequences = pack(lengths, self._stage.seq_len)
        # Best fit sorts by length; training must not.
        order = shuffled(len(sequences), self._seed, "sequences", self._stage.name, index)
        return _Window(documents, [sequences[i] for i in order])

    def _batch(self, rows: list[tuple[_Window, list[Piece]]]) -> Batch:
        arrays = empty_rows(len(rows), self._stage.seq_len, self._pad)
        counts = dict.fromkeys(self._shards, 0)
        only_assistant = self._stage.loss_on == "assistant"
        for i, (window, row) in enumerate(rows):
            names = [window.documents[piece.document] for piece in row]
            docs = {p.document: self._shards[name].doc(d) for p, (name, d) in zip(row, names, strict=True)}
            masks: dict[int, NDArray[np.generic] | None] = {
                p.document: self._shards[name].mask(d) if only_assistant else None
                for p, (name, d) in zip(row, names, strict=True)
            }
            fill_row(row, docs, masks, [a[i] for a in arrays])
            for piece, (name, _) in zip(row, names, strict=True):
                counts[name] += piece.length
        return to_batch(arrays, counts)
