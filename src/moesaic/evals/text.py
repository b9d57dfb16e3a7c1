"""Bits per byte of any text: every token counted once, each with as much history as the window allows.

The first window of a document begins after the tokenizer's begin-of-text tokens, or else the end-of-text token, so
that the first token counts too. Later windows advance by half a window and count their second half: what is
counted beyond the first window has at least half a window before it.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from moesaic.data import Tokenizer, read_documents
from moesaic.errors import DataError, ModelError
from moesaic.evals.bits import BitsPerByte
from moesaic.evals.likelihood import Done, Request, log_likelihoods
from moesaic.model import Transformer
from moesaic.recipe import Source

WINDOW = 2048  # tokens at most; the model's context if that is shorter
BUILTIN = "builtin:prose"
BUILTIN_BYTES = 100_000  # of the built-in corpus, in whole documents
BUILTIN_LONGEST = 20_000  # bytes; of longer documents too few would fit
SEED = 0  # of the order in which documents are taken


def read_text_documents(text: str | None, home: Path, limit: int | None = None) -> list[str]:
    """Documents of a file or folder, in order; of the built-in corpus (None) a fixed sample of 100 kB.

    A folder's files are documents, and so are the rows of a table; of a conversation the contents count. With
    `limit` that many documents of a fixed shuffle. Raises DataError.
    """
    if text is not None and not Path(text).exists():
        raise DataError(f"--text {text}: there is no such file or folder; give one with UTF-8 text")
    documents = [d.content for d in read_documents(Source(name="--text", path=text or BUILTIN), home)]
    if text is not None and limit is None:
        return documents
    documents = random.Random(SEED).sample(documents, len(documents))
    if text is not None:
        return documents[:limit]
    sample, size = [], 0
    for document in documents:
        if size < BUILTIN_BYTES and len(document.encode()) <= BUILTIN_LONGEST:
            sample.append(document)
            size += len(document.encode())
    return sample[:limit]


def bits_per_byte_of_text(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    window: int | None = None,
    done: Done | None = None,
) -> BitsPerByte:
    """All losses of `documents` in bits, divided by their UTF-8 bytes.

    `window`: tokens of a forward pass, by default the model's context, 2048 at most. The standard error is over
    documents by the ratio estimator; of a single document, over its windows. Raises DataError for documents without
    text, ModelError for a window that does not fit.
    """
    window = min(WINDOW, model.config.context) if window is None else window
    prefix = tokenizer.prefix_ids or [tokenizer.eos_id]
    if not len(prefix) < window <= model.config.context:
        raise ModelError(f"a window of {window} tokens; use {len(prefix) + 1} to {model.config.context}")
    encoded = tokenizer.encode_batch(documents)
    requests, owners = [], []
    for number, ids in enumerate(encoded):
        pieces = windows(prefix, ids, window)
        requests += pieces
        owners += [number] * len(pieces)
    if not requests:
        raise DataError("no text to measure; give documents that are not empty")
    found = log_likelihoods(model, requests, done=done)
    several = len(set(owners)) > 1
    nats: dict[int, float] = {}
    sizes: dict[int, float] = {}
    for number, (owner, request, result) in enumerate(zip(owners, requests, found, strict=True)):
        unit = owner if several else number
        nats[unit] = nats.get(unit, 0.0) - result.log_likelihood
        sizes[unit] = float(len(documents[owner].encode()) if several else len(request.continuation))
    total, tokens, nbytes = sum(nats.values()), sum(map(len, encoded)), sum(len(d.encode()) for d in documents)
    value = total / math.log(2) / nbytes
    error = value * ratio_error(list(nats.values()), list(sizes.values()))
    return BitsPerByte(value, error, total / tokens, tokens, nbytes)


def windows(prefix: Sequence[int], ids: Sequence[int], window: int) -> list[Request]:
    """Requests whose continuations are `ids`, each token once; no request has more than `window` inputs."""
    first = window - len(prefix) + 1  # a token that is only predicted takes no place
    pieces = [Request(list(prefix), list(ids[:first]))] if ids else []
    stride = window - window // 2
    for start in range(first, len(ids), stride):
        end = min(start + stride, len(ids))
        pieces.append(Request(list(ids[max(0, end - 1 - window) : start]), list(ids[start:end])))
    return pieces


def ratio_error(numerators: Sequence[float], sizes: Sequence[float]) -> float:
    """Standard error of sum(numerators) / sum(sizes), relative to it (Cochran 1977, eq. 6.13); 0 for one unit."""
    n, total = len(sizes), sum(numerators)
    if n < 2 or total == 0:
        return 0.0
    rate = total / sum(sizes)
    spread = sum((x - rate * size) ** 2 for x, size in zip(numerators, sizes, strict=True))
    return math.sqrt(spread * n / (n - 1)) / total
