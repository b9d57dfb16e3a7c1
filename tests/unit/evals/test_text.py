"""Bits per byte of a text: each token once, bytes exactly, errors as the estimator says."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import Tokenizer
from moesaic.errors import DataError, ModelError
from moesaic.evals import bits_per_byte_of_text, read_text_documents
from moesaic.evals.text import BUILTIN_BYTES, ratio_error, windows
from moesaic.interop import load_model
from moesaic.model import Transformer

TEXT = "Where do you find the river? Ünder the light of the night, from the stone to the bread. " * 6


@pytest.fixture(scope="module")
def model(eval_folder: Path) -> Transformer:
    return load_model(eval_folder)


@pytest.fixture(scope="module")
def tokenizer(eval_folder: Path) -> Tokenizer:
    return Tokenizer.load(eval_folder)


def losses(model: Transformer, ids: list[int]) -> list[float]:
    """Nats of ids[1:], one forward."""
    with torch.inference_mode():
        log_p = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    return [-float(log_p[i, token]) for i, token in enumerate(ids[1:])]


@given(st.integers(1, 3), st.integers(0, 200), st.integers(4, 50))
def test_windows_count_every_token_once_with_half_a_window_before_it(prefix: int, n: int, window: int) -> None:
    ids = list(range(100, 100 + n))
    found = windows(list(range(prefix)), ids, window)
    assert [t for request in found for t in request.continuation] == ids
    for request in found:
        assert len(request.context) + len(request.continuation) - 1 <= window
    for request in found[1:]:
        assert len(request.context) >= min(window // 2, len(ids))
        first = request.continuation[0] - 100
        assert list(request.context) == ids[first - len(request.context) : first]


def test_a_short_text_is_what_one_forward_says(model: Transformer, tokenizer: Tokenizer) -> None:
    text = TEXT[:30]
    found = bits_per_byte_of_text(model, tokenizer, [text])
    ids = tokenizer.encode(text)
    wanted = sum(losses(model, [tokenizer.eos_id, *ids]))
    assert found.tokens == len(ids)
    assert found.bytes == len(text.encode()) == len(text) + 1
    assert found.bits_per_byte == pytest.approx(wanted / math.log(2) / found.bytes, rel=1e-5)
    assert found.nats_per_token == pytest.approx(wanted / len(ids), rel=1e-5)
    assert found.standard_error == 0  # one window: nothing to estimate it from


def test_a_long_text_is_the_sum_of_its_windows(model: Transformer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 2 * 64
    nats = losses(model, [tokenizer.eos_id, *ids[:64]])
    for start in range(64, len(ids), 32):
        end = min(start + 32, len(ids))
        nats += losses(model, ids[end - 65 : end])[-(end - start) :]
    found = bits_per_byte_of_text(model, tokenizer, [TEXT])
    assert len(nats) == len(ids) == found.tokens
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / len(TEXT.encode()), rel=1e-5)
    assert found.standard_error > 0


def test_documents_do_not_see_each_other(model: Transformer, tokenizer: Tokenizer) -> None:
    both = bits_per_byte_of_text(model, tokenizer, [TEXT, TEXT[:40]])
    one, two = (bits_per_byte_of_text(model, tokenizer, [text]) for text in (TEXT, TEXT[:40]))
    total = one.bits_per_byte * one.bytes + two.bits_per_byte * two.bytes
    assert both.bits_per_byte * both.bytes == pytest.approx(total, rel=1e-5)
    assert both.tokens == one.tokens + two.tokens


def test_the_ratio_estimator_by_hand() -> None:
    # Rates 1 and 3 on equal sizes: mean 2, deviations 1, so the error of the mean is 1, half of it.
    assert ratio_error([1.0, 3.0], [1.0, 1.0]) == pytest.approx(0.5)
    assert ratio_error([2.0, 4.0], [1.0, 2.0]) == 0
    assert ratio_error([2.0], [1.0]) == 0


def test_files_folders_and_the_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    assert read_text_documents(str(tmp_path), tmp_path) == ["one", "two", "three"]
    assert read_text_documents(str(tmp_path / "a.txt"), tmp_path) == ["one"]
    assert len(read_text_documents(str(tmp_path), tmp_path, 2)) == 2
    sample = read_text_documents(None, tmp_path)
    assert BUILTIN_BYTES <= sum(len(d.encode()) for d in sample) <= 1.3 * BUILTIN_BYTES
    assert read_text_documents(None, tmp_path) == sample
    assert read_text_documents(None, tmp_path, 3) == sample[:3]


def test_texts_that_cannot_be(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="--text nowhere: there is no such file or folder"):
        read_text_documents("nowhere", tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no document; check path"):
        read_text_documents(str(tmp_path / "empty.txt"), tmp_path)
    with pytest.raises(DataError, match="no text to measure"):
        bits_per_byte_of_text(model, tokenizer, ["", ""])
    with pytest.raises(ModelError, match="a window of 65 tokens; use 2 to 64"):
        bits_per_byte_of_text(model, tokenizer, [TEXT], window=65)
