"""The next token of many requests at once, each by its own options.

The order: repetition penalty, presence and frequency penalty, bias, temperature, and then min-p, top-p and top-k, all
three on the same probabilities; for what `generate` knows, its distribution. A row's tokens depend on its logits and
its own random numbers only, not on who else is in the batch.

Legend: R rows, V vocabulary, n tokens of a row that penalties touch.
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moesaic.errors import ServeError
from moesaic.model.generate import GREEDY_BELOW
from moesaic.serve.draw import draw, keep_likely, likeliest
from moesaic.serve.options import MOST_LOGPROBS, Options
from moesaic.serve.step_plan import PLAIN, TokenNote

Logprobs = tuple[float | None, tuple[tuple[int, float], ...]]
"""Natural logarithm of a token's probability, and the likeliest tokens with theirs."""


class RowState:
    """What sampling remembers of one request: its random numbers, its tokens, what leniency has cost so far."""

    def __init__(self, options: Options, prompt: Sequence[int]) -> None:
        """`prompt`: the repetition penalty applies to it too. Raises ServeError where exactness is contradicted."""
        if options.require_exact and options.leniency:
            raise ServeError("require_exact and a leniency above 0 contradict each other; leave one out")
        self.options = options
        self.greedy = options.temperature < GREEDY_BELOW
        self.penalised = bool(options.repetition_penalty != 1 or options.presence_penalty or options.frequency_penalty)
        self.filtered = not self.greedy and bool(options.top_k or options.top_p < 1 or options.min_p)
        self.leniency = options.leniency if options.max_shift != 0 else 0.0
        """What still holds: 0 once the mean shift per token has reached `max_shift`."""
        self.length = 0
        """Tokens of the answer."""
        self.shift = 0.0
        """Total-variation shift, summed over them."""
        self._random = random.Random(options.seed)  # 50 ns a number; a torch generator of its own takes 2 us
        self._slots: dict[int, int] = {}
        self._tokens = np.empty(64, dtype=np.int64)
        self._counts = np.empty(64, dtype=np.float32)
        if options.repetition_penalty != 1:
            for token in prompt:
                self._slot(token)

    def uniform(self) -> float:
        """The next random number in [0, 1)."""
        return self._random.random()

    def note(self, token: int) -> None:
        """A token of the answer has become certain: penalties count it from now on."""
        self.length += 1
        if self.penalised:
            slot = self._slot(token)
            self._counts[slot] += 1

    def spend(self, shift: float, length: int) -> None:
        """A token moved away by `shift`, when the answer has `length` of them: `max_shift` may end leniency."""
        self.shift += shift
        if self.options.max_shift is not None and self.shift >= self.options.max_shift * length:
            self.leniency = 0.0

    def touched(self, guesses: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that penalties touch, `[n]`, and how often the answer has each, `guesses` counted as its end."""
        n = len(self._slots)
        tokens, counts = self._tokens[:n], self._counts[:n]
        if not guesses:
            return tokens, counts
        extra = Counter(guesses)
        counts = counts.copy()
        for token in extra.keys() & self._slots.keys():
            counts[self._slots[token]] += extra.pop(token)
        new_tokens = np.array(list(extra.keys()), dtype=tokens.dtype)
        new_counts = np.array(list(extra.values()), dtype=counts.dtype)
        return np.concatenate([tokens, new_tokens]), np.concatenate([counts, new_counts])

    def _slot(self, token: int) -> int:
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            if slot == len(self._tokens):
                self._tokens, self._counts = np.resize(self._tokens, 2 * slot), np.resize(self._counts, 2 * slot)
            self._tokens[slot], self._counts[slot] = token, 0
        return slot


def check_vocabulary(options: Options, vocab_size: int) -> None:
    """Raises ServeError for a bias on a token that the model does not have."""
    for token in options.logit_bias:
        if not 0 <= token < vocab_size:
            raise ServeError(
                f"logit_bias names token {token}, and the vocabulary has {vocab_size}: 0 to {vocab_size - 1}"
            )


@torch.inference_mode()
def choose(logits_RV: Tensor, rows: Sequence[RowState]) -> tuple[list[int], list[TokenNote]]:
    """The next token of each row and what is known of it, from the model's logits in fp32. Notes nothing in `rows`."""
    adjusted_RV = adjusted(logits_RV, rows)
    greedy = [r for r, row in enumerate(rows) if row.greedy]
    drawn = [r for r, row in enumerate(rows) if not row.greedy]
    chosen = [0] * len(rows)
    if greedy:
        _put(chosen, greedy, likeliest(of_rows(adjusted_RV, greedy)))
    if drawn:
        theirs = [rows[r] for r in drawn]
        p_RV = probabilities(of_rows(adjusted_RV, drawn), theirs)
        _put(chosen, drawn, draw(p_RV, [row.uniform() for row in theirs]))
    found = logprobs(logits_RV, chosen, rows)
    return chosen, [TokenNote(logprob=p, top=top) if p is not None else PLAIN for p, top in found]


@torch.inference_mode()
def distributions(
    logits_RV: Tensor, rows: Sequence[RowState], guesses: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """`[R, V]` in fp32: what `choose` draws from; all of it on one token for a greedy row.

    `guesses`: for each row, tokens that penalties count as the end of its answer.
    """
    return probabilities(adjusted(logits_RV, rows, guesses), rows)


def adjusted(logits_RV: Tensor, rows: Sequence[RowState], guesses: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Logits after penalties and bias, `[R, V]`; the argument itself where there are none."""
    touched = [
        (r, row.options, row.touched(guesses[r] if guesses else ())) for r, row in enumerate(rows) if row.penalised
    ]
    biased = [(r, token, by) for r, row in enumerate(rows) for token, by in row.options.logit_bias.items()]
    if not touched and not biased:
        return logits_RV
    logits_RV = logits_RV.clone()
    if touched:
        sizes = [len(tokens) for _, _, (tokens, _) in touched]
        settings = [(o.repetition_penalty, o.presence_penalty, o.frequency_penalty) for _, o, _ in touched]
        row_n = torch.from_numpy(np.repeat([r for r, _, _ in touched], sizes)).to(logits_RV.device)
        token_n = torch.from_numpy(np.concatenate([tokens for _, _, (tokens, _) in touched])).to(logits_RV.device)
        count_n = torch.from_numpy(np.concatenate([counts for _, _, (_, counts) in touched])).to(logits_RV.device)
        factors = torch.from_numpy(np.repeat(np.array(settings, dtype=np.float32), sizes, axis=0))
        repetition_n, presence_n, frequency_n = factors.to(logits_RV.device).unbind(1)
        old_n = logits_RV[row_n, token_n]
        new_n = torch.where(old_n > 0, old_n / repetition_n, old_n * repetition_n)
        logits_RV[row_n, token_n] = new_n - presence_n * (count_n > 0) - frequency_n * count_n
    if biased:
        at, tokens, by = zip(*biased, strict=True)
        logits_RV[list(at), list(tokens)] += torch.tensor(by, dtype=logits_RV.dtype, device=logits_RV.device)
    return logits_RV


def probabilities(adjusted_RV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """`[R, V]`: temperature and filters on logits that have their penalties."""
    temperature = [1.0 if row.greedy else row.options.temperature for row in rows]
    if any(t != 1 for t in temperature):
        divide_R1 = torch.tensor(temperature, dtype=adjusted_RV.dtype, device=adjusted_RV.device)[:, None]
        # The largest goes off first: at low temperature the quotients would have no digits left.
        adjusted_RV = (adjusted_RV - adjusted_RV.amax(-1, keepdim=True)).div_(divide_R1)
    p_RV = torch.softmax(adjusted_RV, dim=-1)
    if greedy := [r for r, row in enumerate(rows) if row.greedy]:
        best = likeliest(adjusted_RV[greedy])
        p_RV[greedy] = torch.zeros_like(p_RV[greedy]).scatter_(1, best[:, None], 1.0)
    if filtered := [r for r, row in enumerate(rows) if row.filtered]:
        options = [rows[r].options for r in filtered]
        kept_RV = keep_likely(
            of_rows(p_RV, filtered), [o.top_k for o in options], [o.top_p for o in options], [o.min_p for o in options]
        )
        if len(filtered) == len(rows):
            return kept_RV
        p_RV[filtered] = kept_RV
    return p_RV


def of_rows(x_RV: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows, rising; without a copy when it is all of them."""
    return x_RV if len(rows) == len(x_RV) else x_RV[list(rows)]


def logprobs(logits_RV: Tensor, tokens: Sequence[int], rows: Sequence[RowState]) -> list[Logprobs]:
    """Log probabilities by the model's own logits, before penalties, bias, temperature and filters.

    So they say what the model thinks, not what the options made of it, and mean the same at every temperature.
    """
    found: list[Logprobs] = [(None, ())] * len(rows)
    wanted = [(r, row.options.logprobs) for r, row in enumerate(rows) if row.options.logprobs is not None]
    if not wanted:
        return found
    at = [r for r, _ in wanted]
    logits_RV = logits_RV[at]
    total_R1 = logits_RV.logsumexp(-1, keepdim=True)
    chosen_R1 = torch.tensor([tokens[r] for r in at], device=logits_RV.device)[:, None]
    chosen = (logits_RV.gather(1, chosen_R1) - total_R1)[:, 0].tolist()
    most = logits_RV.topk(min(MOST_LOGPROBS, logits_RV.shape[1]), dim=-1)  # as many for every row: ties fall alike
    values, columns = (most.values - total_R1).tolist(), most.indices.tolist()
    for i, (r, count) in enumerate(wanted):
        found[r] = chosen[i], tuple(zip(columns[i][:count], values[i][:count], strict=True))
    return found


def _put(chosen: list[int], rows: Sequence[int], tokens: Tensor) -> None:
    for r, token in zip(rows, tokens.tolist(), strict=True):
        chosen[r] = token
