"""Shards are Megatron's format byte for byte, and damage is noticed with a remedy."""

import struct
from pathlib import Path

import numpy as np
import pytest

from moesaic.data import Shard, ShardWriter
from moesaic.errors import DataError


def write(folder: Path, vocab_size: int = 512, masked: bool = True) -> Path:
    prefix = folder / "a.b"  # a dot in the name must survive
    writer = ShardWriter(prefix, vocab_size, masked)
    writer.add(np.arange(7), [3, 4], [10, 11], np.array([0, 1, 1, 0, 0, 0, 1]) if masked else None)
    writer.add(np.arange(100, 102), [2], [5], np.array([1, 0]) if masked else None)
    writer.close()
    return prefix


@pytest.mark.parametrize(("vocab_size", "dtype"), [(512, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_what_is_written_is_read(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    shard = Shard(write(tmp_path, vocab_size))
    assert len(shard) == 3
    assert shard.lengths.tolist() == [3, 4, 2]
    assert shard.doc(1).tolist() == [3, 4, 5, 6]
    assert shard.doc(2).dtype == dtype
    assert shard.mask(0).tolist() == [0, 1, 1]
    assert shard.bytes.tolist() == [10, 11, 5]
    assert (shard.tokens, shard.input_tokens) == (9, 6)


def test_the_index_is_megatrons(tmp_path: Path) -> None:
    data = write(tmp_path).with_name("a.b.idx").read_bytes()
    assert data[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", data, 9) == (1, 8, 3, 4)
    assert np.frombuffer(data, np.int32, 3, 34).tolist() == [3, 4, 2]
    assert np.frombuffer(data, np.int64, 3, 46).tolist() == [0, 6, 14]
    assert np.frombuffer(data, np.int64, 4, 70).tolist() == [0, 1, 2, 3]
    assert len(data) == 102


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "none", 512, masked=False).close()
    assert len(Shard(tmp_path / "none")) == 0


@pytest.mark.parametrize("end", [".bin", ".idx", ".mask.bin", ".mask.idx", ".bytes.npy"])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_missing_or_truncated_file_is_an_error_with_name_and_remedy(tmp_path: Path, end: str, cut: int) -> None:
    file = write(tmp_path).with_name("a.b" + end)
    if cut:
        data = file.read_bytes()
        file.write_bytes(data[: max(len(data) - cut, 0)])
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"a\.b.*moesaic data build") as caught:
        Shard(tmp_path / "a.b")
    assert file.name in str(caught.value)


def test_a_foreign_file_is_not_taken_for_an_index(tmp_path: Path) -> None:
    write(tmp_path).with_name("a.b.idx").write_bytes(b"x" * 200)
    with pytest.raises(DataError, match="not a Megatron index"):
        Shard(tmp_path / "a.b")
