"""The mixture covers each source exactly up to its cap, with integers, from any window."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.mixture import MixedSource, Mixture, document, permutation

sources_strategy = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 500), st.integers(1, 4), st.integers(0, 30)),
    min_size=1,
    max_size=4,
).map(lambda rows: [MixedSource(f"s{i}", n, t + n, e, min(start, n * e)) for i, (n, t, e, start) in enumerate(rows)])


@given(sources_strategy, st.integers(1, 3000), st.booleans())
@settings(max_examples=200)
def test_windows_follow_each_other_and_end_exactly_at_the_caps(
    sources: list[MixedSource], window_tokens: int, weighted: bool
) -> None:
    weights = {s.name: 0.1 * (i + 1) for i, s in enumerate(sources)} if weighted else None
    mixture = Mixture(sources, window_tokens, weights)
    at = {s.name: s.start for s in sources}
    for index in range(mixture.windows):
        for name, ordinals in mixture.window(index).items():
            assert ordinals.start == at[name]
            at[name] = ordinals.stop
    assert at == {s.name: s.cap for s in sources}
    assert not any(mixture.window(mixture.windows).values())


def test_no_drift_after_more_windows_than_a_float_can_count() -> None:
    sources = [MixedSource("a", 10**17, 10**18, 1), MixedSource("b", 2 * 10**17, 2 * 10**18, 1)]
    window = Mixture(sources, 1000).window(3 * 10**14 + 1)  # 100 / 3 documents of a in each window
    assert window["a"].start == 10**16 + 33
    assert window["b"].start == 2 * 10**16 + 66


def test_an_epoch_holds_every_document_once_and_epochs_differ() -> None:
    source = MixedSource("s", 50, 500, 3)
    seen = [document(7, source, k) for k in range(source.cap)]
    assert Counter(seen) == dict.fromkeys(range(50), 3)
    assert seen[:50] != seen[50:100]
    assert not np.array_equal(permutation(7, "s", 0, 50), permutation(8, "s", 0, 50))


def test_the_order_never_changes_between_versions() -> None:
    assert permutation(0, "stories", 0, 8).tolist() == [1, 6, 2, 4, 7, 3, 5, 0]


def test_without_weights_all_sources_end_together() -> None:
    sources = [MixedSource("large", 1000, 100_000, 2), MixedSource("small", 30, 900, 4)]
    mixture = Mixture(sources, 2000)
    last = mixture.window(mixture.windows - 2)
    assert last["large"].stop > 0.95 * 2000
    assert last["small"].stop > 0.95 * 120
    assert mixture.window(0)["small"].stop > 0


def test_weights_are_shares_of_tokens_until_a_source_ends() -> None:
    sources = [
        MixedSource("a", 100, 10_000, 1),
        MixedSource("b", 1000, 10_000, 5),
    ]  # 100 and 10 tokens a document
    mixture = Mixture(sources, 1000, {"a": 0.5, "b": 0.5})
    tokens = {"a": 0, "b": 0}
    for index in range(10):
        window = mixture.window(index)
        tokens["a"] += 100 * len(window["a"])
        tokens["b"] += 10 * len(window["b"])
    assert tokens == {"a": 5000, "b": 5000}
    late = mixture.window(mixture.windows - 3)
    assert len(late["a"]) == 0
    assert len(late["b"]) == 100  # b has the windows for itself: 1000 tokens of 10 a document
