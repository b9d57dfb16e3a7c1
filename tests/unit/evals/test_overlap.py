"""Common runs of 13 words are found exactly: neither missed for case and punctuation, nor found for 12 words."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import DataFolder, Shard, ShardWriter, Tokenizer, train_tokenizer
from moesaic.evals import find_overlap
from moesaic.evals import overlap as module
from moesaic.evals.overlap import WORDS, words_of

PLANTED = "the quick brown fox jumps over the lazy dog and runs far away"  # 13 words
assert len(PLANTED.split()) == WORDS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([PLANTED] * 3, 300)


def training(place: Path, tokenizer: Tokenizer, **sources: list[str]) -> DataFolder:
    """A data folder with these training documents by source."""
    shards = {}
    for name, texts in sources.items():
        writer = ShardWriter(place / name, len(tokenizer), masked=False)
        for text in texts:
            ids = [*tokenizer.encode(text), tokenizer.eos_id]
            writer.add(np.array(ids), [len(ids)], [len(text.encode())])
        writer.close()
        shards[name] = Shard(place / name)
    return DataFolder(place, tokenizer, shards, {}, {})


def test_a_planted_run_is_found_whatever_its_case_and_punctuation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    spelled = "THE quick, brown fox -- jumps over 'the' lazy\ndog; and runs FAR away"
    data = training(tmp_path, tokenizer, news=["nothing of it"], tales=["Before " + spelled + ", after."])
    found = find_overlap({"s": {"s/1": [f"Question: {PLANTED}?"], "s/2": ["of other things " * 13]}}, data)["s"]
    assert found.found == {"s/1"}
    assert (found.items, found.too_short, found.share) == (2, 0, 0.5)
    (match,) = found.examples
    assert (match.item, match.source, match.words) == ("s/1", "tales", PLANTED)


def test_twelve_words_are_not_enough(tmp_path: Path, tokenizer: Tokenizer) -> None:
    twelve = " ".join(PLANTED.split()[:12])
    data = training(tmp_path, tokenizer, tales=[f"so {twelve} home", f"all {twelve}", twelve, PLANTED[4:]])
    found = find_overlap({"s": {"s/1": [f"well, {PLANTED}"]}}, data)["s"]
    assert (found.found, found.share, found.examples) == (frozenset(), 0.0, ())


def test_a_run_does_not_reach_over_documents_or_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    words = PLANTED.split()
    data = training(tmp_path, tokenizer, tales=[" ".join(words[:7]), " ".join(words[7:])])
    assert not find_overlap({"s": {"s/1": [PLANTED]}}, data)["s"].found
    data = training(tmp_path / "whole", tokenizer, tales=[PLANTED])
    found = find_overlap({"s": {"s/1": [" ".join(words[:7]), " ".join(words[7:])]}}, data)["s"]
    assert (found.found, found.too_short) == (frozenset(), 1)


def test_every_item_that_shares_a_run_is_found_in_every_suite(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = training(tmp_path, tokenizer, tales=[PLANTED, PLANTED])
    suites = {"a": {"a/1": [PLANTED], "a/2": ["x " + PLANTED]}, "b": {"b/1": ["short"], "b/2": [PLANTED + " y"]}}
    found = find_overlap(suites, data)
    assert found["a"].found == {"a/1", "a/2"}
    assert (found["b"].found, found["b"].too_short, found["b"].share) == ({"b/2"}, 1, 1.0)


def test_training_data_is_read_piece_by_piece(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 40)
    data = training(tmp_path, tokenizer, tales=["nothing " * 5] * 7 + [PLANTED * 1] + [""] * 3)
    told: list[tuple[int, int]] = []
    found = find_overlap({"s": {"s/1": [PLANTED]}}, data, done=lambda *x: told.append(x))
    assert found["s"].found == {"s/1"}
    assert len(told) > 2
    assert told[-1] == (data.train["tales"].tokens,) * 2


@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.lists(st.sampled_from("ab"), max_size=40), max_size=3))
def test_it_equals_a_comparison_of_all_runs(train: list[str], items: list[list[str]]) -> None:
    """Two words only, so that runs repeat and overlap."""
    runs = module._Runs([("s", str(n), " ".join(words)) for n, words in enumerate(items)])
    found = {item for _, item, _ in runs.search([" ".join(train)])}
    known = {tuple(train[i : i + WORDS]) for i in range(len(train) - WORDS + 1)}
    wanted = {
        str(n)
        for n, words in enumerate(items)
        if any(tuple(words[i : i + WORDS]) in known for i in range(len(words) - WORDS + 1))
    }
    assert found == wanted


def test_words_are_lower_case_without_punctuation() -> None:
    assert words_of("Don't STOP -- the_end,\tÉtat 3.14") == ["dont", "stop", "theend", "état", "314"]
