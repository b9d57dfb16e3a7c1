"""Batches are a function of seed and place; the ledger ends exactly at the declared epochs; loss is where it
should be."""

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.data import IGNORE, PADDING, Batch, Carry, DataFolder, Ledger, Loader, held_out_sequences
from moesaic.errors import DataError
from moesaic.recipe import Recipe, Stage


def stage_of(recipe: Recipe, **changes: object) -> Stage:
    return recipe.stages[0].model_copy(update=changes)


def drain(loader: Loader, sequences: int = 4) -> list[Batch]:
    batches = []
    while (batch := loader.next_batch(sequences)) is not None:
        batches.append(batch)
    return batches


def rows(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([torch.stack([b.tokens, b.labels, b.documents, b.positions]) for b in batches], dim=1)


@pytest.mark.parametrize("weights", [None, {"stories": 0.3, "talks": 0.7}])
def test_each_source_ends_exactly_at_its_epochs(folder: DataFolder, recipe: Recipe, weights: dict | None) -> None:
    loader = Loader(folder, stage_of(recipe, weights=weights), recipe, seed=1)
    ledger = Ledger(folder.epoch_tokens)
    promised = loader.available_tokens
    while (batch := loader.next_batch(4)) is not None:
        ledger.add(batch)
        assert batch.input_tokens == int((batch.documents != PADDING).sum())
        assert loader.available_tokens == promised - ledger.total
    assert ledger.epochs("stories") == 2
    assert ledger.epochs("talks") == 4
    assert ledger.total == promised == sum(row["tokens"] for row in ledger.table())
    assert loader.next_batch(4) is None


def test_every_document_is_seen_as_often_as_declared(folder: DataFolder, recipe: Recipe) -> None:
    pairs = pairs_of(drain(Loader(folder, stage_of(recipe), recipe, seed=1)))
    wanted: Counter[tuple[int, int]] = Counter()
    for name, epochs in (("stories", 2), ("talks", 4)):
        for i in range(len(folder.train[name])):
            tokens = folder.train[name].doc(i).tolist()
            for _ in range(epochs):
                wanted.update(itertools.pairwise(tokens))
    assert pairs == wanted


@pytest.mark.parametrize("before", [0, 1, 7, 40])
def test_a_resumed_loader_goes_on_as_if_nothing_happened(folder: DataFolder, recipe: Recipe, before: int) -> None:
    loader = Loader(folder, stage_of(recipe), recipe, seed=1)
    for _ in range(before):
        loader.next_batch(3)
    state = loader.state_dict()
    again = Loader(folder, stage_of(recipe), recipe, seed=1)
    again.load_state_dict(state)
    assert again.available_tokens == loader.available_tokens
    assert torch.equal(rows(drain(again)), rows(drain(loader)))


def test_order_does_not_depend_on_the_batch_size(folder: DataFolder, recipe: Recipe) -> None:
    one, many = (drain(Loader(folder, stage_of(recipe), recipe, seed=1), n) for n in (1, 17))
    assert torch.equal(rows(one), rows(many))
    other = drain(Loader(folder, stage_of(recipe), recipe, seed=2))
    assert not torch.equal(rows(other)[:, :10], rows(one)[:, :10])


def pairs_of(batches: list[Batch]) -> Counter[tuple[int, int]]:
    """Every (input, label) that was learned."""
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        real = batch.documents != PADDING
        pairs.update(zip(batch.tokens[real].tolist(), batch.labels[real].tolist(), strict=True))
    return pairs


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from([16, 32, 64, 100]), st.booleans()), max_size=3))
def test_caps_are_exact_over_stages(folder: DataFolder, recipe: Recipe, stages: list[tuple[int, int, bool]]) -> None:
    """Whatever the lengths of the stages before, the last one ends each source exactly at its epochs."""
    carry, batches, ledger = Carry(), [], Ledger(folder.epoch_tokens)
    for steps, seq_len, only_talks in stages:
        sources = ("talks",) if only_talks else ("stories", "talks")
        stage = stage_of(recipe, name=f"s{seq_len}", seq_len=seq_len, sources=sources)
        loader = Loader(folder, stage, recipe, 1, Carry.of(json.loads(json.dumps(carry.plain()))))
        for _ in range(steps):
            if (batch := loader.next_batch(3)) is not None:
                batches.append(batch)
        carry = loader.carry()
    last = Loader(folder, stage_of(recipe, name="last"), recipe, 1, carry)
    batches += drain(last)
    for batch in batches:
        ledger.add(batch)
    assert (ledger.epochs("stories"), ledger.epochs("talks")) == (2, 4)
    assert pairs_of(batches) == pairs_of(drain(Loader(folder, stage_of(recipe), recipe, seed=1)))
    assert last.carry().passages == ()
    spent = Loader(folder, stage_of(recipe, name="more"), recipe, 1, last.carry())
    assert spent.next_batch(1) is None
    assert spent.available_tokens == 0


def test_what_a_stage_leaves_in_a_window_comes_first_in_the_next(folder: DataFolder, recipe: Recipe) -> None:
    first = Loader(folder, stage_of(recipe), recipe, seed=1)
    first.next_batch(5)
    carry = first.carry()
    second = Loader(folder, stage_of(recipe, name="extend", seq_len=64), recipe, 1, carry)
    assert second.available_tokens == first.available_tokens
    untouched = second.carry()
    assert (untouched.ordinals, untouched.passages) == (carry.ordinals, carry.passages)
    left = Counter[tuple[int, int]]()
    for source, document, start, end in carry.passages:
        left.update(itertools.pairwise(folder.train[source].doc(document)[start : end + 1].tolist()))
    lead = Loader(folder, stage_of(recipe, name="extend", seq_len=64), recipe, 1, carry)
    come: Counter[tuple[int, int]] = Counter()
    while come.total() < left.total():
        come += pairs_of([lead.next_batch(1)])  # type: ignore[list-item]
    assert come == left
    state = (second.next_batch(2), second.state_dict())[1]
    again = Loader(folder, stage_of(recipe, name="extend", seq_len=64), recipe, 1, carry)
    again.load_state_dict(state)
    assert torch.equal(rows(drain(again)), rows(drain(second)))


def test_state_of_another_stage_is_refused(folder: DataFolder, recipe: Recipe) -> None:
    loader = Loader(folder, stage_of(recipe), recipe, 1, Carry({"stories": 3}))
    with pytest.raises(DataError, match="same recipe and data"):
        loader.load_state_dict(Loader(folder, stage_of(recipe), recipe, 1).state_dict())


def test_loss_on_assistant_learns_only_what_the_assistant_says(folder: DataFolder, recipe: Recipe) -> None:
    tokenizer = folder.tokenizer
    stage = stage_of(recipe, sources=("talks",), loss_on="assistant", seq_len=256)
    batch = Loader(folder, stage, recipe, seed=1).next_batch(1)
    assert batch is not None
    learned = batch.labels[batch.labels != IGNORE].tolist()
    text = tokenizer.decode(batch.tokens[batch.documents != PADDING].tolist(), specials=True)
    wanted = [turn.split("<|im_end|>")[0] for turn in text.split("<|im_start|>assistant\n")[1:]]
    assert tokenizer.decode(learned, specials=True) == "".join(f"{w}<|im_end|>" for w in wanted)
    everything = Loader(folder, stage_of(recipe, sources=("talks",), seq_len=256), recipe, seed=1).next_batch(1)
    assert everything is not None
    assert (everything.labels[everything.documents != PADDING] != IGNORE).all()


def test_held_out_documents_are_never_trained_on(folder: DataFolder) -> None:
    for name, shard in folder.train.items():
        trained = {tuple(shard.doc(i).tolist()) for i in range(len(shard))}
        held = folder.held_out[name]
        assert len(held) > 0
        assert not any(tuple(held.doc(i).tolist()) in trained for i in range(len(held)))


def test_held_out_batches_hold_every_token_and_its_bytes(folder: DataFolder) -> None:
    held = held_out_sequences(folder, ["stories", "talks"], seq_len=32, batch=3)
    assert held.bytes == sum(int(folder.held_out[s].bytes.sum()) for s in ("stories", "talks"))
    assert held.documents == sum(len(folder.held_out[s]) for s in ("stories", "talks"))
    assert sum(b.input_tokens for b in held.batches) == sum(
        folder.held_out[s].input_tokens for s in ("stories", "talks")
    )
    story = held_out_sequences(folder, ["stories"], seq_len=32, limit_tokens=1)
    assert story.documents == 1
    text = folder.tokenizer.decode(folder.held_out["stories"].doc(0).tolist())
    assert story.bytes == len(text.encode())


def test_a_ledger_survives_a_checkpoint(folder: DataFolder, recipe: Recipe) -> None:
    ledger = Ledger(folder.epoch_tokens)
    ledger.add(Loader(folder, stage_of(recipe), recipe, seed=1).next_batch(8))  # type: ignore[arg-type]
    again = Ledger({})
    again.load_state_dict(ledger.state_dict())
    assert again.table() == ledger.table()


def test_padding_is_rare(folder: DataFolder, recipe: Recipe) -> None:
    batches = drain(Loader(folder, stage_of(recipe), recipe, seed=1))
    slots = sum(b.tokens.numel() for b in batches)
    assert sum(b.input_tokens for b in batches) > 0.97 * slots
