"""Bits per byte on held-out documents, and loss as a function of the position at which a token is read.

Legend: B sequences, S positions, D model width, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moesaic.data import IGNORE, Batch, DataFolder, held_out_sequences
from moesaic.model import Transformer

ROWS = 1024  # rows of logits at a time
ROWS_A_BATCH = 8  # sequences at a time


@dataclass(frozen=True)
class BitsPerByte:
    """Result on one source. `standard_error` is over sequences, by the ratio estimator."""

    bits_per_byte: float
    standard_error: float
    nats_per_token: float
    tokens: int
    bytes: int


@torch.inference_mode()
def token_losses(model: Transformer, batch: Batch) -> Tensor:
    """Cross entropy of every position in nats, fp32 `[batch, seq]`; 0 where there is no label."""
    device = model.embedding.device
    batch = batch.to(device)
    hidden_BSD, _ = model.hidden(batch.tokens, batch.positions, batch.documents)
    head_VD = model.head_weight.to(hidden_BSD.dtype)
    labels, hidden = batch.labels.flatten(), hidden_BSD.flatten(0, 1)
    losses = [
        F.cross_entropy(F.linear(rows, head_VD).float(), wanted, ignore_index=IGNORE, reduction="none")
        for rows, wanted in zip(hidden.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return torch.cat(losses).view_as(batch.labels).cpu()


def bits_per_byte(
    model: Transformer, data: DataFolder, source: str, seq_len: int, limit_tokens: int | None = None
) -> BitsPerByte | None:
    """All label losses of held-out documents in bits, divided by the bytes of their text; None without documents."""
    held_out = held_out_sequences(data, [source], seq_len, limit_tokens)
    if not held_out.bytes:
        return None
    nats: list[float] = []
    counts: list[int] = []
    for batch in held_out.batches:
        nats += token_losses(model, batch).sum(dim=1, dtype=torch.float64).tolist()
        counts += (batch.labels != IGNORE).sum(dim=1).tolist()
    total, tokens = sum(nats), sum(counts)
    rate = total / tokens
    spread = sum((n - rate * c) ** 2 for n, c in zip(nats, counts, strict=True))
    error = math.sqrt(spread * len(nats) / max(len(nats) - 1, 1)) / total
    value = total / math.log(2) / held_out.bytes
    return BitsPerByte(value, value * error, rate, tokens, held_out.bytes)


def loss_by_position(
    model: Transformer,
    data: DataFolder,
    sources: Iterable[str],
    length: int,
    limit_tokens: int,
    buckets: int = 8,
) -> list[tuple[int, float, float]]:
    """Mean loss of the same held-out tokens, read at one position after another.

    The tokens that stand at the last positions of `length` in their documents are read again and again, each time
    with their document begun later, so that they move to earlier positions and have less before them. What is read
    stays the same: a document that gets harder as it goes on bends no curve. Documents of more than `length` tokens
    count, `limit_tokens` inputs of each source at most. Returns (last position of the bucket + 1, nats per token,
    standard error over documents) for each bucket; empty when no document is long enough.
    """
    docs = [doc[: length + 1] for name in sources for doc in long_documents(data, name, length, limit_tokens)]
    if not docs:
        return []
    buckets = min(buckets, length)
    size = length // buckets
    points = []
    for end in (length * (i + 1) // buckets for i in range(buckets)):
        cut = [doc[length - end :] for doc in docs]
        pieces = [cut[i : i + ROWS_A_BATCH] for i in range(0, len(cut), ROWS_A_BATCH)]
        means = torch.cat([token_losses(model, one_document_a_row(rows))[:, -size:].mean(dim=1) for rows in pieces])
        error = float(means.std(correction=0)) / math.sqrt(max(len(docs) - 1, 1))
        points.append((end, float(means.mean()), error))
    return points


def one_document_a_row(docs: Sequence[NDArray[np.generic]]) -> Batch:
    """Documents of equal length `n + 1` as a batch of `n` inputs each, without padding."""
    tokens = torch.from_numpy(np.stack(docs).astype(np.int64))
    inputs = tokens[:, :-1]
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    return Batch(inputs, tokens[:, 1:], torch.zeros_like(inputs), positions)


def long_documents(data: DataFolder, source: str, length: int, limit_tokens: int) -> Iterator[NDArray[np.generic]]:
    """Held-out documents of `source` with more than `length` tokens, up to `limit_tokens` inputs in all."""
    shard, taken = data.held_out[source], 0
    for i in range(len(shard)):
        if shard.lengths[i] > length and taken + length <= limit_tokens:
            taken += length
            yield shard.doc(i)
