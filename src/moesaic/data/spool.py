"""Documents of one source on their way through a build: on disk, with only numbers about them in memory."""

import hashlib
import pickle
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesaic.data.chat import content_bytes
from moesaic.data.filters import reason_to_drop
from moesaic.data.sources import Document, read_documents
from moesaic.recipe import Data, Source

_GROUP = 1000  # documents pickled together


class Spool:
    """The documents of a source that passed the rules, with 20 bytes of memory each."""

    def __init__(self, source: Source, data: Data, home: Path, path: Path, tick: Callable[[int], None]) -> None:
        """Read the source once. `tick` hears how many documents were read so far. Raises DataError."""
        self.source = source
        self.dropped: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.read = 0
        self._path = path
        names, orders, sizes = array("Q"), array("Q"), array("i")
        group: list[Document] = []
        with path.open("wb") as file:
            for document in read_documents(source, home, self.skipped):
                self.read += 1
                if self.read % 10_000 == 0:
                    tick(self.read)
                if reason := reason_to_drop(document, source, data):
                    self.dropped[reason] += 1
                    continue
                digest = hashlib.blake2b(document.content.encode(), digest_size=16).digest()
                names.append(int.from_bytes(digest[:8], "little"))
                orders.append(int.from_bytes(digest[8:], "little"))
                sizes.append(size_of(document))
                group.append(document)
                if len(group) == _GROUP:
                    pickle.dump([(d.text, d.messages, d.origin) for d in group], file)
                    group.clear()
            pickle.dump([(d.text, d.messages, d.origin) for d in group], file)
        self.names: NDArray[np.uint64] = np.array(names, dtype=np.uint64)
        """Hash of each document's content: what makes it the same document, and held out or not.
        [documents]"""
        self.orders: NDArray[np.uint64] = np.array(orders, dtype=np.uint64)
        """Independent hash: the fixed shuffled order in which samples are taken. [documents]"""
        self.sizes: NDArray[np.int64] = np.array(sizes, dtype=np.int64)
        """UTF-8 bytes. [documents]"""
        self.keep: NDArray[np.bool_] = np.ones(len(names), np.bool_)
        """Documents that are still in. [documents]"""
        self.held_out: NDArray[np.bool_] = np.zeros(len(names), np.bool_)
        """Documents kept for evaluation. [documents]"""

    def drop(self, which: NDArray[np.bool_], reason: str) -> None:
        """Take documents out and count them."""
        which = which & self.keep
        if n := int(which.sum()):
            self.dropped[reason] += n
            self.keep &= ~which

    def within(self, budget: int, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The documents among `among` that fit into `budget` bytes, taken in the fixed shuffled order."""
        chosen = np.zeros(len(self.keep), np.bool_)
        candidates = np.flatnonzero(among)
        order = candidates[np.argsort(self.orders[candidates], kind="stable")]
        fits = np.cumsum(self.sizes[order]) <= budget
        fits[:1] |= budget > 0  # a budget smaller than one document still gives one
        chosen[order[fits]] = True
        return chosen

    def documents(self, which: NDArray[np.bool_]) -> Iterator[tuple[int, Document]]:
        """(index, document) of the documents in `which`, in reading order."""
        index = 0
        with self._path.open("rb") as file:
            while index < len(which):
                for row in pickle.load(file):
                    if which[index]:
                        yield index, Document(*row)
                    index += 1


def size_of(document: Document) -> int:
    """UTF-8 bytes of a text, or of the trimmed contents of a conversation: the bytes of bits per byte."""
    return len(document.text.encode()) if document.text is not None else content_bytes(document.messages or ())
