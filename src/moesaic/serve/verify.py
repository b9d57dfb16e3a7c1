"""Speculative verification: which of a draft's guesses stand, and what follows them.

A guess x, drawn from the draft's distribution q, is accepted with probability min(1, p(x) / (l q(x))), where p is what
the model's own logits and the request's options say, and l = 1 - leniency. The first rejected one is replaced by a
token from norm(max(0, p - q)); after the last, one more token is drawn from p. With leniency 0 every token follows p,
as without a draft (Leviathan et al. 2023; Chen et al. 2023). With more, no token becomes more than 1/l times likelier
than p makes it, and what p forbids stays forbidden; the residual must be the exact rule's for that.

Shift. The output at a position follows out(x) = min(q, p/l) where q > p, and at most p elsewhere, so its distance
TV(out, p) is sum min(q, p/l) - sum min(q, p): the acceptance that leniency adds. A certain guess (from a lookup, or a
greedy draft) is a q of 1.

At temperature 0, p is 1 at the likeliest token and the rule above has nothing to give. There the leniency is a
difference in probability: a guess is accepted too when it is one of the `GREEDY_RANK` likeliest tokens and less than
`leniency` below the likeliest one, in the softmax of the logits with penalties and bias at temperature 1. The model's
own choice being certain, such a token has shift 1 and any other 0: the mean is the share of tokens that greedy
decoding would not have chosen. The bound 1/l does not hold there.

Legend: R rows, K guesses of a row, N positions of all rows (K + 1 of each), M guesses of all rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from moesaic.serve.draw import draw, likeliest
from moesaic.serve.sampling import RowState, adjusted, logprobs, of_rows, probabilities
from moesaic.serve.step_plan import TokenNote

GREEDY_RANK = 8  # lenient at temperature 0 among so many


@dataclass(frozen=True)
class Verdict:
    """One row's new tokens: accepted guesses and one that the model chose itself."""

    tokens: tuple[int, ...]
    notes: tuple[TokenNote, ...]
    accepted: int
    """Guesses among `tokens`, its first ones."""


@torch.inference_mode()
def verify(
    logits_NV: Tensor, drafts: Sequence[Sequence[int]], q_MV: Tensor | None, rows: Sequence[RowState]
) -> list[Verdict]:
    """Check the guesses of each row; a row may have none, and is then sampled as `choose` does.

    `logits_NV`: the model's, in fp32: for each row at its last known token, then at each guess. `q_MV`: what the
    guesses were drawn from, row after row; None when they are certain. Calls `spend` of `rows`, not `note`.
    """
    starts = _starts(drafts)
    of_position = [row for row, guesses in zip(rows, drafts, strict=True) for _ in range(len(guesses) + 1)]
    adjusted_NV = adjusted(logits_NV, of_position, [guesses[:k] for guesses in drafts for k in range(len(guesses) + 1)])

    ends: dict[int, _End] = {}
    for greedy in (True, False):
        if chosen := [r for r, row in enumerate(rows) if row.greedy == greedy]:
            theirs, guesses = [rows[r] for r in chosen], [drafts[r] for r in chosen]
            theirs_NV = of_rows(adjusted_NV, [starts[r] + k for r in chosen for k in range(len(drafts[r]) + 1)])
            if greedy:
                found = _greedy(theirs_NV, guesses, theirs)
            else:
                at_m = [starts[r] - r + k for r in chosen for k in range(len(drafts[r]))]
                found = _sampled(theirs_NV, guesses, None if q_MV is None else of_rows(q_MV, at_m), theirs)
            ends.update(zip(chosen, found, strict=True))

    tokens = [(*guesses[: len(ends[r].marks) - 1], ends[r].token) for r, guesses in enumerate(drafts)]
    at_n = [start + k for start, new in zip(starts, tokens, strict=True) for k in range(len(new))]
    known = iter(logprobs(of_rows(logits_NV, at_n), [t for new in tokens for t in new], [of_position[n] for n in at_n]))
    verdicts = []
    for r, new in enumerate(tokens):
        notes = []
        for k, (lenient, shift) in enumerate(ends[r].marks):
            p, top = next(known)
            notes.append(TokenNote(drafted=k < len(new) - 1, lenient=lenient, shift=shift, logprob=p, top=top))
        verdicts.append(Verdict(new, tuple(notes), len(new) - 1))
    return verdicts


@torch.inference_mode()
def draft_choose(
    logits_RV: Tensor, rows: Sequence[RowState], guesses: Sequence[Sequence[int]]
) -> tuple[list[int], Tensor | None]:
    """A guess for each row from the draft's logits in fp32, and what it was drawn from, `[R, V]`.

    None in place of that when all are greedy, and their guesses certain. `guesses`: those before, in this check. The
    options work on the draft's logits as on the model's, so a draft that agrees with the model is never rejected.
    """
    if all(row.greedy for row in rows):
        return likeliest(adjusted(logits_RV, rows, guesses)).tolist(), None
    q_RV = probabilities(adjusted(logits_RV, rows, guesses), rows)
    return draw(q_RV, [0.0 if row.greedy else row.uniform() for row in rows]).tolist(), q_RV


def output_distribution(p_V: Tensor, q_V: Tensor, leniency: float) -> Tensor:
    """What `verify` puts out at one position, `[V]`, over all guesses from `q_V`: the rule written down."""
    accepted_V = torch.minimum(q_V, p_V / (1 - leniency))
    residual_V = (p_V - q_V).clamp_min(0)
    if not residual_V.any():
        return accepted_V  # p and q are the same, and nothing is rejected
    return accepted_V + (1 - accepted_V.sum()) * residual_V / residual_V.sum()


@dataclass(frozen=True)
class _End:
    """Where a row's check ended: the token there, and for it and each guess before: lenient or not, shift."""

    token: int
    marks: list[tuple[bool, float]]


@dataclass(frozen=True)
class _Guess:
    """What the rule needs to know of a guess."""

    p: float
    q: float
    lenient_p: float
    """p / l."""
    shift: float
    """Of its position, under leniency."""


def _judge(row: RowState, guesses: Sequence[_Guess]) -> list[tuple[bool, float]]:
    """Go through the guesses up to the first rejected one. The marks of the accepted, and one more."""
    marks: list[tuple[bool, float]] = []
    for guess in guesses:
        lenient = row.leniency > 0
        at = 0.0 if row.greedy else row.uniform() * guess.q
        exact, stands = at < guess.p, at < (guess.lenient_p if lenient else guess.p)
        shift = guess.shift if lenient else 0.0
        marks.append((stands and not exact, shift))
        row.spend(shift, row.length + len(marks))
        if not stands:
            return marks
    return [*marks, (False, 0.0)]


def _greedy(adjusted_NV: Tensor, drafts: Sequence[Sequence[int]], rows: Sequence[RowState]) -> list[_End]:
    best_N: list[int] = likeliest(adjusted_NV).tolist()
    starts = _starts(drafts)
    # Probabilities are needed only where leniency may change something.
    asked = [
        (start + k, guess, row.leniency)
        for start, guesses, row in zip(starts, drafts, rows, strict=True)
        for k, guess in enumerate(guesses)
        if row.leniency > 0 and guess != best_N[start + k]
    ]
    near = _near(adjusted_NV, asked) if asked else set()
    ends = []
    for start, guesses, row in zip(starts, drafts, rows, strict=True):
        judged = []
        for n, guess in enumerate(guesses, start):
            other = n in near
            judged.append(_Guess(float(guess == best_N[n]), 1.0, float(other or guess == best_N[n]), float(other)))
        marks = _judge(row, judged)
        ends.append(_End(best_N[start + len(marks) - 1], marks))
    return ends


def _near(adjusted_NV: Tensor, asked: Sequence[tuple[int, int, float]]) -> set[int]:
    """Positions whose guess is near enough to the likeliest token, of those asked: position, guess, leniency."""
    at, guesses, leniency = zip(*asked, strict=True)
    p_NV = torch.softmax(adjusted_NV[list(at)], dim=-1)
    guess_N1 = torch.tensor(guesses, device=p_NV.device)[:, None]
    below_N = torch.tensor(leniency, dtype=p_NV.dtype, device=p_NV.device)
    p_N1 = p_NV.gather(1, guess_N1)
    near_N = (p_NV.amax(-1) - p_N1[:, 0] < below_N) & ((p_NV > p_N1).sum(-1) < GREEDY_RANK)
    near_N &= p_N1[:, 0] > 0  # a forbidden token is not near, however flat the rest
    return {n for n, fine in zip(at, near_N.tolist(), strict=True) if fine}


def _sampled(
    adjusted_NV: Tensor, drafts: Sequence[Sequence[int]], q_MV: Tensor | None, rows: Sequence[RowState]
) -> list[_End]:
    of_position = [row for row, guesses in zip(rows, drafts, strict=True) for _ in range(len(guesses) + 1)]
    p_NV = probabilities(adjusted_NV, of_position)
    judged = iter(_compare(p_NV, q_MV, drafts, rows))
    all_marks = [_judge(row, [next(judged) for _ in guesses]) for row, guesses in zip(rows, drafts, strict=True)]
    uniform = [row.uniform() for row in rows]
    weight_RV = p_NV[[start + len(marks) - 1 for start, marks in zip(_starts(drafts), all_marks, strict=True)]]

    rejected = [r for r, marks in enumerate(all_marks) if len(marks) <= len(drafts[r])]
    if rejected:
        p_RV = weight_RV[rejected]
        if q_MV is None:
            guesses = [drafts[r][len(all_marks[r]) - 1] for r in rejected]
            left_RV = p_RV.scatter(1, torch.tensor(guesses, device=p_RV.device)[:, None], 0.0)
        else:
            at_m = [
                start - r + len(marks) - 1
                for r, (start, marks) in enumerate(zip(_starts(drafts), all_marks, strict=True))
            ]
            left_RV = (p_RV - q_MV[[at_m[r] for r in rejected]]).clamp_min_(0)
        # Nothing is left over when p and q differ by rounding only; either will do then.
        weight_RV[rejected] = torch.where(left_RV.amax(-1, keepdim=True) > 0, left_RV, p_RV)
    tokens = draw(weight_RV, uniform).tolist()
    return [_End(token, marks) for token, marks in zip(tokens, all_marks, strict=True)]


def _compare(
    p_NV: Tensor, q_MV: Tensor | None, drafts: Sequence[Sequence[int]], rows: Sequence[RowState]
) -> list[_Guess]:
    """Every guess of every row, with the leniency that its row begins the check with."""
    all_guesses = [guess for guesses in drafts for guess in guesses]
    if not all_guesses:
        return []
    at_n = [start + k for start, guesses in zip(_starts(drafts), drafts, strict=True) for k in range(len(guesses))]
    level = [1 - row.leniency for row, guesses in zip(rows, drafts, strict=True) for _ in guesses]
    guess_M1 = torch.tensor(all_guesses, device=p_NV.device)[:, None]
    p: list[float] = p_NV[at_n, guess_M1[:, 0]].tolist()
    q: list[float] = [1.0] * len(p) if q_MV is None else q_MV.gather(1, guess_M1)[:, 0].tolist()
    shift = [0.0] * len(p)
    if q_MV is None:
        shift = [min(1.0, a / at) - a for a, at in zip(p, level, strict=True)]
    elif lenient := [m for m, at in enumerate(level) if at < 1]:
        p_MV, q_MV = p_NV[[at_n[m] for m in lenient]], q_MV[lenient]
        level_M1 = torch.tensor([level[m] for m in lenient], device=p_NV.device)[:, None]
        more_M = (torch.minimum(q_MV, p_MV / level_M1) - torch.minimum(q_MV, p_MV)).sum(-1)
        for m, more in zip(lenient, more_M.tolist(), strict=True):
            shift[m] = more
    return [_Guess(a, b, a / at, s) for a, b, at, s in zip(p, q, level, shift, strict=True)]


def _starts(drafts: Sequence[Sequence[int]]) -> list[int]:
    """Of each row, its first position among all rows'; its first guess among all guesses is so many less as it is."""
    return [0, *accumulate(len(guesses) + 1 for guesses in drafts)][:-1]
