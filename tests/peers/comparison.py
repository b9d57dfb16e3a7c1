"""When do a peer and we agree? One rule for every peer.

Both read the same prompt ids and compute in fp32. Sums in another order end in other last digits, so two good
programs may choose different tokens where two are equally likely, and have different prefixes from there on.
Therefore:

- greedy tokens are equal, or at the first difference the peer's token is as good as ours in our own logits, to
  less than TIE. (Never less strict than asking for a gap below TIE between our best two.)
- the log-probabilities that both give to our tokens, after the same prefixes, differ by less than TOLERANCE.

Legend: N new tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 1e-3  # of logits
TOLERANCE = 1e-3  # nats


@dataclass
class Comparison:
    """What was found; the peer agrees when there are no problems."""

    first_difference: int | None = None
    """Index of the first new token that is not ours."""
    gap: float | None = None
    """There: our logit of our token less that of theirs."""
    log_prob_difference: float = float("nan")
    """The largest, over our tokens."""
    problems: list[str] = field(default_factory=list)


def log_probs(tokens_N: Sequence[int], logits_NV: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probability of each token, in fp64."""
    logits_NV = logits_NV.astype(np.float64)
    logits_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    chosen_N = logits_NV[np.arange(len(tokens_N)), list(tokens_N)]
    result: NDArray[np.float64] = chosen_N - np.log(np.exp(logits_NV).sum(axis=1))
    return result


def compare(
    ours_N: Sequence[int], logits_NV: NDArray[Any], theirs_N: Sequence[int], their_log_probs_N: Sequence[float]
) -> Comparison:
    """Compare our greedy tokens, and our logits that each was chosen from, with a peer's answers.

    `theirs_N` are the peer's greedy tokens, `their_log_probs_N` what it gives to *our* tokens.
    """
    found = Comparison()
    if len(theirs_N) != len(ours_N) or len(their_log_probs_N) != len(ours_N) or not len(ours_N):
        found.problems.append(
            f"{len(ours_N)} tokens wanted, {len(theirs_N)} tokens and {len(their_log_probs_N)} log-probabilities came"
        )
        return found
    for n, (our, their) in enumerate(zip(ours_N, theirs_N, strict=True)):
        if our != their:
            found.first_difference = n
            known = 0 <= their < logits_NV.shape[1]
            found.gap = float(logits_NV[n, our] - logits_NV[n, their]) if known else float("inf")
            if not abs(found.gap) < TIE:
                found.problems.append(f"token {n} is {their}, ours {our}, better by {found.gap:.2g} in our logits")
            break
    differences_N = np.abs(log_probs(ours_N, logits_NV) - np.asarray(their_log_probs_N, dtype=np.float64))
    found.log_prob_difference = float(differences_N.max())  # NaN if there is one
    if not found.log_prob_difference < TOLERANCE:
        n = int(differences_N.argmax())
        found.problems.append(f"log-probability of our token {n} differs by {differences_N[n]:.2g}")
    return found
