"""Bits per byte against arithmetic, and the loss by position against models whose answer is known."""

import math

import pytest
import torch

import tiny
from moesaic.data import DataFolder
from moesaic.evals import bits_per_byte, loss_by_position
from moesaic.model import Transformer

LENGTH = 64


@pytest.fixture(scope="module")
def folder(tiny_recipe: object, tiny_home: object) -> DataFolder:
    return tiny.data(tiny_recipe, tiny_home)  # type: ignore[arg-type]


def source(folder: DataFolder) -> str:
    return next(name for name, shard in folder.held_out.items() if (shard.lengths > LENGTH).any())


def silent(folder: DataFolder) -> Transformer:
    """A model that says the same wherever it looks: every weight zero, so every token is equally likely."""
    net = tiny.model(vocab_size=len(folder.tokenizer))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    return net


def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary(folder: DataFolder) -> None:
    name = source(folder)
    found = bits_per_byte(silent(folder), folder, name, LENGTH)
    assert found is not None
    shard = folder.held_out[name]
    assert found.tokens == shard.input_tokens
    assert found.bytes == int(shard.bytes.sum())
    wanted = math.log2(len(folder.tokenizer)) * shard.input_tokens / found.bytes
    assert found.bits_per_byte == pytest.approx(wanted, rel=1e-5)
    assert found.standard_error == pytest.approx(0, abs=1e-5)


def test_without_layers_the_same_tokens_cost_the_same_at_every_position(folder: DataFolder) -> None:
    """A bigram model sees one token back: where the document was begun cannot matter. Its curve must be flat."""
    net = tiny.model(vocab_size=len(folder.tokenizer))
    for name, parameter in net.named_parameters():
        if name.startswith("layers"):
            torch.nn.init.zeros_(parameter)
    points = loss_by_position(net, folder, [source(folder)], LENGTH, 1000)
    assert [p for p, _, _ in points] == list(range(8, LENGTH + 1, 8))
    odd = loss_by_position(net, folder, [source(folder)], LENGTH - 5, 1000)
    assert [p for p, _, _ in odd][-1] == LENGTH - 5
    assert len(odd) == 8
    assert all(nats == pytest.approx(points[0][1], abs=1e-5) for _, nats, _ in points)
    assert points[0][1] != pytest.approx(math.log(len(folder.tokenizer)), abs=1e-3)  # it does look at tokens


def test_the_last_point_is_the_plain_loss_at_the_end_of_the_documents(folder: DataFolder) -> None:
    net, name = tiny.model(vocab_size=len(folder.tokenizer)), source(folder)
    points = loss_by_position(net, folder, [name], LENGTH, 1000)
    shard = folder.held_out[name]
    long = [i for i in range(len(shard)) if shard.lengths[i] > LENGTH][: 1000 // LENGTH]
    losses = []
    net.requires_grad_(False)
    for i in long:
        ids = torch.tensor(shard.doc(i)[: LENGTH + 1].astype("int64")).unsqueeze(0)
        log_p = net(ids[:, :-1]).log_softmax(dim=-1).gather(2, ids[:, 1:].unsqueeze(-1)).squeeze()
        losses.append(-log_p[-8:].mean())
    assert points[-1][1] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def test_no_document_of_that_length_is_no_curve(folder: DataFolder) -> None:
    assert loss_by_position(silent(folder), folder, [source(folder)], 100_000, 1000) == []
