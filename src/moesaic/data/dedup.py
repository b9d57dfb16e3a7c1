"""Near-duplicate removal: MinHash over 5-word shingles and locality-sensitive hashing (Broder 1997; Lee et
al. 2022).

Deterministic: words are hashed with CRC-32, and the first of two alike documents stays.
"""

import zlib

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

SHINGLE_WORDS = 5
PERMUTATIONS = 64
_CHUNK = 4096  # shingles at once: a [shingles, permutations] table of 64-bit words stays in cache-sized pieces


class NearDuplicates:
    """Remembers documents and tells whether a new one is alike to an earlier one."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: estimated Jaccard similarity above which two documents are alike."""
        self._threshold = threshold
        # The sketches decide afterwards, so the index may propose too much but not miss: of pairs at 0.8
        # it proposes 88 in 100, with datasketch's even weights 36.
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._known: list[MinHash] = []

    def seen(self, text: str) -> bool:
        """Whether `text` is alike to an earlier one; if not, it is remembered."""
        sketch = _sketch(text)
        if any(sketch.jaccard(self._known[i]) >= self._threshold for i in self._index.query(sketch)):
            return True
        self._index.insert(len(self._known), sketch)
        self._known.append(sketch)
        return False


def shingles(text: str) -> NDArray[np.uint32]:
    """Distinct hashes of all runs of 5 words, lower-cased; a shorter text is one shingle. uint32 [n], n >=
    1."""
    words = np.array([zlib.crc32(word) for word in text.lower().encode().split()], dtype=np.uint64)
    n = max(len(words) - SHINGLE_WORDS + 1, 1)
    rolled = np.zeros(n, np.uint64)
    for i in range(min(SHINGLE_WORDS, len(words))):
        rolled = rolled * np.uint64(0x9E3779B97F4A7C15) + words[i : i + n]
    return np.unique((rolled >> np.uint64(32)).astype(np.uint32))


def _sketch(text: str) -> MinHash:
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    hashes = shingles(text)
    for start in range(0, len(hashes), _CHUNK):
        sketch.update_batch(hashes[start : start + _CHUNK].tolist())
    return sketch
