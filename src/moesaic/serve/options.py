"""How a request wants its answer: what `generate` knows, and what only a server needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesaic.errors import ServeError
from moesaic.model.generate import SamplingSettings

MOST_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Options(SamplingSettings):
    """Settings of one request. Raises ModelError or ServeError for a number out of range."""

    presence_penalty: float = 0.0
    """Taken off the logits of tokens that are in the answer already, once (as OpenAI defines it)."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens of the answer, as often as they are in it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """Log probabilities of each new token and of so many of the likeliest; None: not wanted."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    speculate: bool = True
    """Whether a draft may guess. The answer follows the same distribution either way."""
    leniency: float = 0.0
    """Guesses are taken more willingly: no token becomes more than 1 / (1 - leniency) times likelier; 0 is exact."""
    max_shift: float | None = None
    """Mean total-variation shift per token at which leniency is given up for the rest of the answer."""
    require_exact: bool = False
    """Refuse rather than be lenient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            ("logit_bias", all(-100 <= b <= 100 for b in self.logit_bias.values()), "numbers from -100 to 100"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS, f"from 0 to {MOST_LOGPROBS}"),
            ("stop", len(self.stop) <= 16 and all(self.stop), "at most 16 texts, none of them empty"),
            ("leniency", 0 <= self.leniency < 1, "0 (exact) or more, below 1"),
            ("max_shift", self.max_shift is None or 0 <= self.max_shift <= 1, "from 0 to 1"),
        )
        for name, fine, wanted in limits:
            if not fine:
                raise ServeError(f"{name} = {getattr(self, name)} is out of range; use {wanted}")
        if self.require_exact and self.leniency:
            raise ServeError("require_exact and a leniency above 0 contradict each other; leave one out")
