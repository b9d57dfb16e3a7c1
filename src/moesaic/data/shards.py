"""Memory-mapped shards of tokens in Megatron's `.bin/.idx` layout (IndexedDataset, version 1).

    NAME.bin        tokens of all documents, one after the other, uint16 or int32
    NAME.idx        "MMIDIDX\\0\\0", version <Q, dtype code <B, sequences <Q, documents + 1 <Q,
                    lengths int32[sequences], byte offsets int64[sequences], document starts int64[documents +
                    1]
    NAME.mask.*     the same for uint8 loss masks (chat only): 1 where the token is to be learned
    NAME.bytes.npy  int32[documents]: UTF-8 bytes of the text each document came from, for bits per byte

Each document is one sequence. Sizes are checked whenever a shard is opened, sha256 when a folder is verified.
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesaic.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
REMEDY = "delete the data folder and run `moesaic data build` again"


def token_dtype(vocab_size: int) -> type[np.generic]:
    """Narrowest of uint16 and int32 that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


class _Indexed:
    """Writes one `.bin/.idx` pair."""

    def __init__(self, prefix: Path, dtype: type[np.generic]) -> None:
        self.prefix, self.dtype = prefix, dtype
        self.lengths = array("i")
        self.file = _sibling(prefix, ".bin").open("wb")

    def add(self, flat: NDArray[np.generic], lengths: Sequence[int] | NDArray[np.int64]) -> None:
        self.file.write(np.ascontiguousarray(flat, dtype=self.dtype).tobytes())
        self.lengths.extend(int(n) for n in lengths)

    def close(self) -> None:
        self.file.close()
        n = len(self.lengths)
        lengths = np.frombuffer(self.lengths, dtype=np.int32) if n else np.zeros(0, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(self.dtype).itemsize
        with _sibling(self.prefix, ".idx").open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, CODES[self.dtype], n, n + 1))
            file.write(lengths.tobytes())
            file.write(np.concatenate([np.zeros(1, np.int64), ends])[:n].tobytes())
            file.write(np.arange(n + 1, dtype=np.int64).tobytes())


class ShardWriter:
    """Writes a shard document by document into files that begin with `prefix`; the caller renames the folder
    when all is done."""

    def __init__(self, prefix: Path, vocab_size: int, masked: bool) -> None:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        self._tokens = _Indexed(prefix, token_dtype(vocab_size))
        self._mask = _Indexed(_sibling(prefix, ".mask"), np.uint8) if masked else None
        self._bytes = array("i")

    def add(
        self,
        flat: NDArray[np.generic],
        lengths: Sequence[int] | NDArray[np.int64],
        bytes_: Sequence[int] | NDArray[np.int64],
        mask: NDArray[np.generic] | None = None,
    ) -> None:
        """Append documents: their tokens end to end, their lengths in tokens, their source bytes, and their
        loss mask."""
        self._tokens.add(flat, lengths)
        self._bytes.extend(int(n) for n in bytes_)
        if self._mask is not None:
            assert mask is not None, "a masked shard needs a mask for every document"
            self._mask.add(mask, lengths)

    def close(self) -> None:
        """Write the indices. Without it the shard does not exist."""
        self._tokens.close()
        if self._mask is not None:
            self._mask.close()
        with _sibling(self._prefix, ".bytes.npy").open("wb") as file:
            np.save(file, np.array(self._bytes, dtype=np.int32))


class Shard:
    """A shard opened for reading; nothing is loaded before it is asked for. Raises DataError when files are
    missing or cut."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.lengths, self._offsets, self._tokens = _open(prefix)
        """Tokens per document, int32 [documents]."""
        mask = _sibling(prefix, ".mask")
        self._mask: NDArray[np.generic] | None = None
        if _sibling(mask, ".idx").exists() or _sibling(mask, ".bin").exists():
            lengths, _, self._mask = _open(mask)
            if not np.array_equal(lengths, self.lengths):
                raise DataError(f"{mask}.idx: the loss mask does not fit the tokens of {prefix}.idx; {REMEDY}")
        self.bytes = _open_bytes(_sibling(prefix, ".bytes.npy"), len(self.lengths))
        """UTF-8 bytes of the text of each document, int32 [documents]."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return len(self._tokens)

    @property
    def input_tokens(self) -> int:
        """Tokens that training can take as inputs in one epoch: all but the last of each document."""
        return self.tokens - int(np.count_nonzero(self.lengths))

    @property
    def masked(self) -> bool:
        """Whether the shard says which tokens are to be learned."""
        return self._mask is not None

    def doc(self, i: int) -> NDArray[np.generic]:
        """Tokens of document `i`, a view [lengths[i]] of the file."""
        return self._tokens[self._offsets[i] : self._offsets[i] + self.lengths[i]]

    def mask(self, i: int) -> NDArray[np.generic] | None:
        """Loss mask of document `i`, uint8 [lengths[i]], or None where everything is learned."""
        if self._mask is None:
            return None
        return self._mask[self._offsets[i] : self._offsets[i] + self.lengths[i]]


def shard_files(prefix: Path) -> list[Path]:
    """Files that belong to the shard at `prefix`, those that exist."""
    ends = (".bin", ".idx", ".mask.bin", ".mask.idx", ".bytes.npy")
    return [path for end in ends if (path := _sibling(prefix, end)).exists()]


def file_sha256(path: Path) -> str:
    """sha256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sibling(prefix: Path, end: str) -> Path:
    return prefix.with_name(prefix.name + end)  # with_suffix would eat a dot of the name


def _open(prefix: Path) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.generic]]:
    """Lengths, token offsets and tokens of one pair; every size is checked against the header."""
    index_file, data_file = _sibling(prefix, ".idx"), _sibling(prefix, ".bin")
    for path in (index_file, data_file):
        if not path.is_file():
            raise DataError(f"shard file {path} is missing; {REMEDY}")
    index = index_file.read_bytes()
    if len(index) < HEADER.size:
        raise DataError(f"{index_file} is cut short ({len(index)} bytes); {REMEDY}")
    magic, version, code, n, starts = HEADER.unpack_from(index)
    if magic != MAGIC or version != 1 or code not in DTYPES:
        raise DataError(f"{index_file} is not a Megatron index of version 1; {REMEDY}")
    expected = HEADER.size + 12 * n + 8 * starts
    if len(index) != expected:
        raise DataError(f"{index_file} has {len(index)} bytes, its header says {expected}; {REMEDY}")
    lengths = np.frombuffer(index, np.int32, n, HEADER.size)
    pointers = np.frombuffer(index, np.int64, n, HEADER.size + 4 * n)
    dtype = np.dtype(DTYPES[code])
    total = int(lengths.sum(dtype=np.int64))
    size = data_file.stat().st_size
    if size != total * dtype.itemsize:
        raise DataError(f"{data_file} has {size} bytes, its index says {total * dtype.itemsize}; {REMEDY}")
    data: NDArray[np.generic] = np.memmap(data_file, dtype, mode="r") if total else np.zeros(0, dtype)
    return lengths, pointers // dtype.itemsize, data


def _open_bytes(path: Path, documents: int) -> NDArray[np.int32]:
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is missing or cut short ({error}); {REMEDY}") from error
    if found.shape != (documents,):
        raise DataError(f"{path} counts {found.shape} documents, the index {documents}; {REMEDY}")
    return np.asarray(found, dtype=np.int32)
