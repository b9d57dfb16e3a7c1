"""How likely a model finds given continuations: the engine behind multiple choice and bits per byte.

No padding where no context is shared: rows stand end to end as packed documents. A context that several
continuations share is computed once, where that costs less (`batches.py` counts). The head is applied to the
positions that are asked for only; for short choices it would be a fifth of the work.

Legend: R rows, S positions, N positions asked for, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moesaic.errors import ModelError
from moesaic.evals.batches import Row, SharedBatch, plan
from moesaic.model import Cache, Transformer

ROWS = 512  # rows of logits at a time
Done = Callable[[int, int], None]
"""Told (tokens computed, tokens to compute) after each pass."""


@dataclass(frozen=True)
class Request:
    """Ids of a context, at least one, and of what may follow it, at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """Answer to one request."""

    log_likelihood: float
    """Sum of the log-probabilities of the continuation's tokens, nats."""
    greedy: bool
    """Whether each of them is the likeliest token at its place."""
    cut: bool
    """Whether the context was longer than the model's and lost its beginning."""


@torch.inference_mode()
def log_likelihoods(
    model: Transformer, requests: Sequence[Request], *, done: Done | None = None, tokens_a_pass: int = 2048
) -> list[Likelihood]:
    """Log-likelihood of each continuation after its context, in the order of `requests`.

    Products run in the model's compute dtype, log-probabilities in fp32, their sums in fp64. A request that is
    longer than the model's context loses tokens on the left. Raises ModelError for an empty context or
    continuation, a continuation that alone is longer than the context, or an id outside the vocabulary.
    """
    fitted = [_fit(model, request) for request in requests]
    todo = plan([(context, continuation) for context, continuation, _ in fitted], tokens_a_pass)
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
    computed, total = 0, sum(batch.tokens for batch in todo)
    for batch in todo:
        if isinstance(batch, SharedBatch):
            for rows, hidden_ND in _shared(model, batch):
                _collect(model, rows, hidden_ND, sums, greedy)
        else:
            _collect(model, batch.rows, _packed(model, batch.rows), sums, greedy)
        computed += batch.tokens
        if done is not None:
            done(computed, total)
    return [Likelihood(float(s), bool(g), cut) for s, g, (_, _, cut) in zip(sums, greedy, fitted, strict=True)]


def log_likelihoods_reference(model: Transformer, requests: Sequence[Request]) -> list[Likelihood]:
    """The same, one sequence at a time, all logits."""
    found = []
    for request in requests:
        context, continuation, cut = _fit(model, request)
        ids = torch.tensor([*context, *continuation], device=model.embedding.device)
        with torch.inference_mode():
            log_p_NV = model(ids[None, :-1])[0, len(context) - 1 :].float().log_softmax(dim=-1)
        wanted = ids[len(context) :]
        total = float(log_p_NV.gather(1, wanted[:, None]).sum(dtype=torch.float64))
        found.append(Likelihood(total, bool((log_p_NV.argmax(dim=-1) == wanted).all()), cut))
    return found


def _fit(model: Transformer, request: Request) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Context and continuation as they fit the model, and whether the context was cut."""
    longest, vocab = model.config.context, model.config.vocab_size
    context, continuation = tuple(request.context), tuple(request.continuation)
    if not context or not continuation:
        raise ModelError("a request without context or continuation; give each at least one token")
    if len(continuation) > longest:
        raise ModelError(
            f"a continuation has {len(continuation)} tokens and the model's context {longest}; shorten the continuation"
        )
    if wrong := [t for t in (*context, *continuation) if not 0 <= t < vocab]:
        raise ModelError(f"token {wrong[0]} is not in the vocabulary of {vocab}; use the model's own tokenizer")
    over = len(context) + len(continuation) - 1 - longest  # the last token is never an input
    return (context[over:], continuation, True) if over > 0 else (context, continuation, False)


def _packed(model: Transformer, rows: Sequence[Row]) -> Tensor:
    """Hidden states `[asked for, width]` of rows that stand end to end, each a document of its own."""
    device = model.embedding.device
    lengths = torch.tensor([len(row.inputs) for row in rows], device=device)
    ends = lengths.cumsum(0)
    documents = torch.repeat_interleave(torch.arange(len(rows), device=device), lengths)
    positions = torch.arange(int(ends[-1]), device=device) - (ends - lengths)[documents]
    tokens = torch.tensor([t for row in rows for t in row.inputs], device=device)
    hidden_BSD, _ = model.hidden(tokens[None], positions[None], documents[None])
    asked = torch.tensor([len(row.context) - 1 for row in rows], device=device)
    return hidden_BSD[0, positions >= asked[documents]]


def _shared(model: Transformer, batch: SharedBatch) -> Iterator[tuple[list[Row], Tensor]]:
    """Rows with their hidden states `[asked for, width]`; the first `batch.shared` tokens are computed once a group.

    What is left of a row continues a copy of its group's cache. Rows are padded on the right, where a causal
    model does not look.
    """
    device, shared = model.embedding.device, batch.shared
    first = Cache(model.config, len(batch.groups), shared, model.compute_dtype, device)
    model.hidden(torch.tensor([rows[0].inputs[:shared] for rows in batch.groups], device=device), cache=first)
    for members in batch.passes:
        group_R = torch.tensor([group for group, _ in members], device=device)
        rows = [row for _, row in members]
        width = max(len(row.inputs) for row in rows) - shared
        cache = Cache(model.config, len(rows), shared + width, model.compute_dtype, device)
        for layer, old in zip(cache.layers, first.layers, strict=True):
            layer.append(0, old.k_BKSC[group_R], old.v_BKSC[group_R])
        cache.advance(shared)
        padded = [[*row.inputs[shared:], *[0] * (shared + width - len(row.inputs))] for row in rows]
        hidden_RSD, _ = model.hidden(torch.tensor(padded, device=device), cache=cache)
        first_R1 = torch.tensor([[len(row.context) - 1 - shared] for row in rows], device=device)
        end_R1 = torch.tensor([[len(row.inputs) - shared] for row in rows], device=device)
        at_S = torch.arange(width, device=device)
        yield rows, hidden_RSD[(at_S >= first_R1) & (at_S < end_R1)]


def _collect(
    model: Transformer,
    rows: Sequence[Row],
    hidden_ND: Tensor,
    sums: NDArray[np.float64],
    greedy: NDArray[np.bool_],
) -> None:
    """Add the log-probabilities of all tokens that `rows` ask for to `sums`; clear `greedy` where one is not best."""
    places: list[int] = []  # of the position that predicts a token, among all that are asked for
    tokens: list[int] = []
    owners: list[int] = []
    at = 0
    for row in rows:
        for request, continuation in row.asked:
            places += range(at, at + len(continuation))
            tokens += continuation
            owners += [request] * len(continuation)
        at += len(row.inputs) - len(row.context) + 1
    place, token = (torch.tensor(x, device=hidden_ND.device) for x in (places, tokens))
    head_VD = model.head_weight.to(hidden_ND.dtype)
    log_p, best = torch.empty(len(places), device=hidden_ND.device), torch.empty_like(token, dtype=torch.bool)
    for lo in range(0, len(hidden_ND), ROWS):
        logits_NV = F.linear(hidden_ND[lo : lo + ROWS], head_VD).float()
        norm_N, top_N = logits_NV.logsumexp(dim=-1), logits_NV.argmax(dim=-1)
        here = ((place >= lo) & (place < lo + ROWS)).nonzero().squeeze(1)
        where, what = place[here] - lo, token[here]
        log_p[here] = logits_NV[where, what] - norm_N[where]
        best[here] = top_N[where] == what
    np.add.at(sums, owners, log_p.double().cpu().numpy())
    np.logical_and.at(greedy, owners, best.cpu().numpy())
