"""Is the budget spent well? Parameters against tokens, repeated data, and how many experts.

Losses are nats per token of the papers' own data and tokenizers: compare them with each other, not with a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesaic.errors import PlanError
from moesaic.plan.routing import touched
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Value

Real: TypeAlias = "float | NDArray[np.float64]"

RATIO = 20.0
"""Tokens per parameter (Hoffmann et al. 2022, arXiv:2203.15556, approaches 1 and 2: N and D grow alike, table 3)."""


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta: parameters N, tokens D, loss in nats per token. A dense model."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: Real, tokens: Real) -> Real:
        """Loss of `parameters` trained on `tokens` that are all new."""
        size, data = np.asarray(parameters, float), np.asarray(tokens, float)
        return np.asarray(self.e + self.a / size**self.alpha + self.b / data**self.beta)

    def best(self, flop: Real) -> tuple[Real, Real]:
        """Parameters and tokens of the least loss with 6 N D = `flop` (Hoffmann et al. 2022, eq. 4)."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        product = np.asarray(flop, float) / 6
        size = g * product ** (self.beta / (self.alpha + self.beta))
        return size, np.asarray(product / size)


HOFFMANN = LossLaw(
    1.69, 406.4, 410.7, 0.3392, 0.2849, "Hoffmann et al. 2022, arXiv:2203.15556, approach 3, eq. 10 before rounding"
)  # the printed 0.34 and 0.28 would give 32 B where the paper (fig. 4) has 40 B; the digits are in its TeX source
REFIT = LossLaw(
    1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, arXiv:2404.10102: approach 3 fitted again"
)


def best_by_ratio(flop: Real, ratio: float = RATIO) -> tuple[Real, Real]:
    """Parameters and tokens that spend 6 N D = `flop` at `ratio` tokens per parameter."""
    size = np.sqrt(np.asarray(flop, float) / (6 * ratio))
    return size, size * ratio


def readings(shape: Shape) -> dict[str, float]:
    """What "parameters" may mean for a mixture: active, total, and their geometric mean. Chinchilla says nothing."""
    active, total = float(shape.active_parameters), float(shape.total_parameters)
    return {"active": active, "total": total, "geometric mean": (active * total) ** 0.5}


# Repetition

REPEAT = 15.3878
"""R*_D: repetitions after which more are worth little (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5)."""


@dataclass(frozen=True)
class Repeated:
    """A source of data: different tokens, and how often each is seen in all."""

    unique: float
    epochs: float

    def __post_init__(self) -> None:
        """Raises PlanError for what cannot be."""
        if not (self.unique > 0 and np.isfinite(self.unique) and self.epochs >= 1 and np.isfinite(self.epochs)):
            raise PlanError(
                f"{self.unique:g} unique tokens seen {self.epochs:g} times: unique tokens are positive, epochs from 1"
            )

    @property
    def seen(self) -> float:
        """Tokens counting repetitions."""
        return self.unique * self.epochs


def effective_tokens(unique: Real, epochs: Real, repeat: float = REPEAT) -> Real:
    """New tokens that would teach as much: U + U R* (1 - exp(-R / R*)), R = epochs - 1 (Muennighoff et al. 2023)."""
    again = np.asarray(epochs, float) - 1
    return np.asarray(unique, float) * (1 + repeat * -np.expm1(-again / repeat))


# Number of experts


@dataclass(frozen=True)
class RoutedLaw:
    """log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d, E^ a number of experts that saturates.

    N are the parameters of the dense model under the mixture, of which each token meets one expert in E. One expert
    (E = 1) is the dense model itself.
    """

    a: float
    b: float
    c: float
    d: float
    start: float
    most: float
    source: str

    def saturated(self, experts: Real) -> Real:
        """E^: grows like `experts` from `start` and never passes `most` (the law's eq. for it)."""
        first = 1 / (1 / self.start - 1 / self.most)
        return np.asarray(1 / (1 / (np.asarray(experts, float) - 1 + first) + 1 / self.most))

    def log_loss(self, parameters: Real, experts: Real) -> Real:
        """log10 of the loss after 130 B tokens."""
        size, many = np.log10(parameters), np.log10(self.saturated(experts))
        return np.asarray(self.a * size + self.b * many + self.c * size * many + self.d)

    def dense_equivalent(self, parameters: Real, experts: Real) -> Real:
        """Parameters of the dense model of equal loss (the paper's effective parameter count).

        Compute per token goes with the dense model's size, so this over `parameters` is also the factor of compute
        that routing saves at equal tokens.
        """
        one = np.log10(self.start)
        return np.asarray(
            10 ** ((self.log_loss(parameters, experts) - self.d - self.b * one) / (self.a + self.c * one))
        )

    @property
    def cutoff(self) -> float:
        """Parameters from where on more experts no longer help at this number of tokens: 10^(-b/c)."""
        return float(10 ** (-self.b / self.c))


SBASE = RoutedLaw(
    -0.082,
    -0.108,
    0.009,
    1.104,
    1.847,
    314.478,
    "Clark et al. 2022, arXiv:2202.01169, eq. 1 and table 3 (S-BASE)",
)

FITTED_PARAMETERS = 1.3e9
FITTED_EXPERTS = 512
"""Where Clark et al. measured: dense models up to 1.3 B under up to 512 experts, 130 B tokens."""


def with_experts(shape: Shape, experts: int) -> Shape:
    """The same model with so many experts of the same width; a token meets as many as before. Raises PlanError."""
    if experts < shape.top_k:
        raise PlanError(f"{experts} experts: a token meets {shape.top_k}, so give at least as many")
    return replace(shape, n_experts=experts)


def serving_by_experts(
    shape: Shape, experts: tuple[int, ...] = (8, 16, 64, 128), batches: tuple[int, ...] = (1, 8, 32, 128, 512)
) -> list[Mapping[str, Value]]:
    """Rows of what a decode step of each batch reads: experts touched in a layer, tokens for each, weights per token.

    Weights in bytes at 16 bit; the batch is of tokens that a step decodes together. Raises PlanError.
    """
    rows: list[Mapping[str, Value]] = []
    for many in experts:
        other = with_experts(shape, many)
        block = other.block_parameters(other.d_expert) * other.sparse_layers
        shared = other.parameters(0) - (0 if other.tied else other.embedding_parameters)  # of those, one row a token
        for batch in batches:
            met = float(touched(many, shape.top_k, batch))
            rows.append(
                {
                    "experts": many,
                    "step_tokens": batch,
                    "touched_experts": met,
                    "touched_share": met / many,
                    "tokens_per_touched_expert": batch * shape.top_k / met,
                    "weights_read_gb": 2 * (shared + met * block) / 1e9,
                    "weights_read_gb_per_token": 2 * (shared + met * block) / 1e9 / batch,
                }
            )
    return rows
