"""Packed documents do not know of each other: not in logits, not in gradients, not in positions, not in labels.

Tolerance: packing changes the order of no sum over real keys, only the shapes that the kernels see; logits of about
unit size then differ by less than 1e-5 in fp32. Gradients across documents are exactly zero, for every path between
them is multiplied by zero.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moesaic.data import IGNORE, Batch, DataFolder, Loader
from moesaic.data.batch import empty_rows, fill_row, to_batch
from moesaic.data.chat import encode_chat
from moesaic.data.packing import Piece, pack
from moesaic.model import Transformer
from moesaic.model import attend as attend_module
from moesaic.recipe import Recipe
from tiny import model

TOLERANCE = 1e-5


def real_batch(data: DataFolder, recipe: Recipe, stage: str, sequences: int = 30) -> Batch:
    """What the loader makes of real documents."""
    batch = Loader(data, recipe.stage(stage), recipe, seed=5).next_batch(sequences)
    assert batch is not None
    return batch


def pieces(batch: Batch) -> Iterator[tuple[int, slice]]:
    """(row, positions) of every document piece."""
    for row, documents in enumerate(batch.documents.tolist()):
        at = 0
        for number, group in groupby(documents):
            length = len(list(group))
            if number >= 0:
                yield row, slice(at, at + length)
            at += length


def small_model() -> Transformer:
    """Of a size that gives logits of about one."""
    return model(init_std=0.1, context=256)


@pytest.mark.parametrize("stage", ["pretrain", "extend", "instruct"])
def test_logits_of_a_document_do_not_depend_on_neighbours_and_offset(
    tiny_data: DataFolder, tiny_recipe: Recipe, stage: str
) -> None:
    built, batch = small_model(), real_batch(tiny_data, tiny_recipe, stage)
    with torch.no_grad():
        packed = built(batch.tokens, batch.positions, batch.documents)
        offsets = set()
        for row, here in pieces(batch):
            alone = built(batch.tokens[row : row + 1, here])[0]
            difference = float((packed[row, here] - alone).abs().max())
            assert difference <= TOLERANCE, (row, here, difference)
            offsets.add(here.start)
    assert len(offsets) > 4  # the case is not empty
    assert 0.1 < packed.std() < 10


def test_one_document_among_other_neighbours_and_at_other_offsets(tiny_data: DataFolder) -> None:
    docs = [tiny_data.train["code"].doc(i) for i in range(30)]
    document = max((d for d in docs if len(d) < 60), key=len)
    others = [d for d in docs if len(d) < 90 and d is not document]
    built = small_model()
    seen = []
    for before in ([], others[:1], others[1:2], others[2:4]):
        for after in ([], others[4:5]):
            row = [*before, document, *after]
            arrays = empty_rows(1, 384, 0)
            fill_row(
                pack_in_order([len(d) for d in row]),
                dict(enumerate(row)),
                dict.fromkeys(range(len(row))),
                [a[0] for a in arrays],
            )
            batch = to_batch(arrays, {})
            with torch.no_grad():
                logits = built(batch.tokens, batch.positions, batch.documents)
            seen.append(logits[0][batch.documents[0] == len(before)])
    for logits in seen:
        assert float((logits - seen[0]).abs().max()) <= TOLERANCE


def pack_in_order(lengths: list[int]) -> list[Piece]:
    """One sequence with the documents in the given order, which `pack` would choose by length."""
    assert sum(lengths) <= 384
    return [Piece(document, 0, n - 1) for document, n in enumerate(lengths)]


@pytest.mark.parametrize("chunk", [16, 128])
@pytest.mark.parametrize("stage", ["pretrain", "extend", "instruct"])
def test_the_gradient_to_every_neighbours_embedding_is_exactly_zero(
    tiny_data: DataFolder, tiny_recipe: Recipe, stage: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend_module, "CHUNK", chunk)
    built, batch = small_model(), real_batch(tiny_data, tiny_recipe, stage, 8)
    embedded: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        embedded.append(inputs[0].detach().requires_grad_())
        return (embedded[-1], *inputs[1:])

    built.layers[0].register_forward_pre_hook(keep)
    logits = built(batch.tokens, batch.positions, batch.documents)
    pull = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    checked = 0
    for row, here in pieces(batch):
        objective = (logits[row, here] * pull[row, here]).sum()
        (gradient,) = torch.autograd.grad(objective, embedded[0], retain_graph=True)
        inside = gradient[row, here].clone()
        gradient[row, here] = 0
        assert gradient.count_nonzero() == 0, (row, here)
        assert (inside.abs().sum(dim=-1) > 0).all()  # and every token of its own matters
        checked += 1
    assert checked > 4


def test_the_future_has_no_gradient_either(tiny_data: DataFolder, tiny_recipe: Recipe) -> None:
    built, batch = small_model(), real_batch(tiny_data, tiny_recipe, "pretrain", 1)
    embedded: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        embedded.append(inputs[0].detach().requires_grad_())
        return (embedded[-1], *inputs[1:])

    built.layers[0].register_forward_pre_hook(keep)
    logits = built(batch.tokens, batch.positions, batch.documents)
    _, here = next(p for p in pieces(batch) if p[1].stop - p[1].start > 9)
    middle = here.start + 5
    (gradient,) = torch.autograd.grad(logits[0, middle].square().sum(), embedded[0])
    assert gradient[0, middle + 1 :].count_nonzero() == 0
    assert (gradient[0, here.start : middle + 1].abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("stage", ["pretrain", "extend"])
def test_positions_restart_and_no_label_crosses_a_boundary(
    tiny_data: DataFolder, tiny_recipe: Recipe, stage: str
) -> None:
    """Each piece with the label of its last input is a stretch of one document; a label from elsewhere is not."""
    batch = real_batch(tiny_data, tiny_recipe, stage, 40)
    seq_len = tiny_recipe.stage(stage).seq_len
    stretches = set()
    for source in tiny_recipe.stage(stage).sources:
        shard = tiny_data.train[source]
        for i in range(len(shard)):
            doc = shard.doc(i).tolist()
            stretches |= {tuple(doc[lo : lo + seq_len + 1]) for lo in range(0, len(doc) - 1, seq_len)}
    covered = torch.zeros_like(batch.documents, dtype=torch.bool)
    for row, here in pieces(batch):
        tokens, labels = batch.tokens[row, here].tolist(), batch.labels[row, here].tolist()
        assert batch.positions[row, here].tolist() == list(range(len(tokens)))
        assert labels[:-1] == tokens[1:]
        assert (*tokens, labels[-1]) in stretches
        covered[row, here] = True
    assert (batch.documents[~covered] == -1).all()
    assert (batch.labels[~covered] == IGNORE).all()
    assert int(covered.sum()) == batch.input_tokens


def learned(batch: Batch, row: int, here: slice) -> list[list[int]]:
    """Runs of labels that are learned, in one piece."""
    runs = groupby(batch.labels[row, here].tolist(), key=lambda label: label != IGNORE)
    return [list(run) for wanted, run in runs if wanted]


def test_the_loss_mask_of_a_rendered_sample_covers_the_assistant_only(tiny_data: DataFolder) -> None:
    tokenizer = tiny_data.tokenizer
    chats = [
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Which module sorts?"},
            {"role": "assistant", "content": "bisect, or <|im_end|> heapq: \u00e9\u4e2d \U0001f600"},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ],
        [{"role": "user", "content": "assistant\nHello"}, {"role": "assistant", "content": "user\nHello to you."}],
    ]
    encoded = [encode_chat(tokenizer, chat) for chat in chats]
    rows = pack([len(ids) for ids, _ in encoded], 384)
    arrays = empty_rows(len(rows), 384, tokenizer.pad_id)
    for i, row in enumerate(rows):
        fill_row(
            row,
            {n: ids for n, (ids, _) in enumerate(encoded)},
            {n: mask for n, (_, mask) in enumerate(encoded)},
            [a[i] for a in arrays],
        )
    batch = to_batch(arrays, {})
    order = [piece.document for row in rows for piece in row]
    for number, (row, here) in zip(order, pieces(batch), strict=True):
        said = [m["content"] for m in chats[number] if m["role"] == "assistant"]
        runs = learned(batch, row, here)
        assert all(run[-1] == tokenizer.end_of_turn_id for run in runs)
        assert [tokenizer.decode(run[:-1], specials=True) for run in runs] == said


def test_in_a_run_only_what_an_assistant_said_is_learned(tiny_data: DataFolder, tiny_recipe: Recipe) -> None:
    rows = Path(str(tiny_recipe.data.sources[2].path)).read_text(encoding="utf-8").splitlines()
    said: dict[str, list[str]] = {}  # by the first question
    for messages in (json.loads(row)["messages"] for row in rows):
        said[messages[0]["content"]] = [m["content"] for m in messages if m["role"] == "assistant"]
    batch, seen = real_batch(tiny_data, tiny_recipe, "instruct", 20), 0
    for row, here in pieces(batch):
        text = tiny_data.tokenizer.decode(batch.tokens[row, here].tolist(), specials=True)
        match = re.match(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text)
        assert match is not None
        runs = [tiny_data.tokenizer.decode(run, specials=True) for run in learned(batch, row, here)]
        assert runs == [content + "<|im_end|>" for content in said[match[1]]]
        seen += 1
    assert seen > 50
