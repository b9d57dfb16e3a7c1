"""Text from a model, token by token, with a contiguous cache: simple, and the reference for serving.

Legend: B sequences (1 here), S positions, V vocabulary, L layers, K experts a token visits.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.errors import ModelError
from moesaic.model.cache import Cache
from moesaic.model.router import Routing
from moesaic.model.transformer import Transformer

FinishReason = Literal["stop", "length"]
PREFILL_CHUNK = 1024  # positions at a time: the mask of a whole 32k prompt would take a gigabyte
GREEDY_BELOW = 1e-5  # temperature: logits divided by less overflow fp32, and the likeliest token has all probability


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen, and when to end. Raises ModelError for a number out of range."""

    temperature: float = 0.7
    """Logits are divided by it; 0 takes the most likely token (greedy)."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Choose among the fewest tokens that together reach this probability (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the most likely one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Logits of tokens already there are divided by it if positive, else multiplied (Keskar et al. 2019)."""
    max_tokens: int = 256
    """New tokens at most; the context may end the answer earlier."""
    seed: int = 0
    """Of the generator that draws tokens."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer."""

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, bool, str], ...] = (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 changes nothing"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
        )
        for name, fine, wanted in limits:
            if not fine:
                raise ModelError(f"{name} = {getattr(self, name)} is out of range; use {wanted}")


@dataclass(frozen=True)
class Step:
    """One new token. The last has a finish reason; when that is "stop" the token is the stop token itself."""

    token: int
    finish_reason: FinishReason | None = None
    experts: tuple[tuple[int, ...], ...] | None = None
    """`[layers][k]`: experts that computed this token's logits; only when asked for."""


def generate_tokens(
    model: Transformer, prompt_ids: Sequence[int], settings: SamplingSettings, *, show_experts: bool = False
) -> Iterator[Step]:
    """Continue `prompt_ids`, yielding each token as it is chosen. Raises ModelError before the first one."""
    _check_prompt(model, prompt_ids)
    return _generate(model, list(prompt_ids), settings, show_experts)


def _check_prompt(model: Transformer, prompt_ids: Sequence[int]) -> None:
    context, vocab = model.config.context, model.config.vocab_size
    if not prompt_ids:
        raise ModelError("the prompt is empty; give at least one token")
    if len(prompt_ids) >= context:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context {context}, which must "
            f"hold the answer too; shorten the prompt to at most {context - 1} tokens"
        )
    if wrong := [t for t in prompt_ids if not 0 <= t < vocab]:
        raise ModelError(f"token {wrong[0]} is not in the vocabulary of {vocab}; use the model's own tokenizer")


def _generate(model: Transformer, prompt: list[int], settings: SamplingSettings, show_experts: bool) -> Iterator[Step]:
    device = model.embedding.device
    room = min(settings.max_tokens, model.config.context - len(prompt))
    cache = Cache(model.config, 1, len(prompt) + room, model.compute_dtype, device)
    generator = torch.Generator(device).manual_seed(settings.seed)
    seen = list(prompt)
    new = prompt
    for left in range(room - 1, -1, -1):
        with _RouterRecord(model if show_experts else None) as record:
            logits_V = _next_logits(model, new, cache)
        token = choose(logits_V, settings, seen, generator)
        reason: FinishReason | None = "length" if left == 0 else None
        if token in settings.stop_ids:
            reason = "stop"
        yield Step(token, reason, record.last_position())
        if reason is not None:
            return
        seen.append(token)
        new = [token]


@torch.inference_mode()
def _next_logits(model: Transformer, new: list[int], cache: Cache) -> Tensor:
    """Feed `new` tokens after what the cache holds; logits `[vocab]` in fp32 of the token after them."""
    tokens_BS = torch.tensor([new], device=model.embedding.device)
    length = cache.length + len(new)
    for start in range(0, len(new), PREFILL_CHUNK):
        hidden_BSD, _ = model.hidden(tokens_BS[:, start : start + PREFILL_CHUNK], cache=cache, length=length)
    # The head runs for the last position only: for a long prompt it would be most of the work.
    return F.linear(hidden_BSD[0, -1], model.head_weight.to(model.compute_dtype)).float()


@torch.inference_mode()
def choose(logits_V: Tensor, settings: SamplingSettings, seen: Sequence[int], generator: torch.Generator) -> int:
    """Choose a token from logits `[vocab]`; `seen` are the tokens that the repetition penalty applies to."""
    if settings.repetition_penalty != 1:
        index = torch.tensor(sorted(set(seen)), device=logits_V.device)
        old = logits_V[index]
        punished = torch.where(old > 0, old / settings.repetition_penalty, old * settings.repetition_penalty)
        logits_V = logits_V.index_copy(0, index, punished)
    if settings.temperature < GREEDY_BELOW:
        return int(logits_V.argmax())
    p_V = torch.softmax((logits_V - logits_V.max()) / settings.temperature, dim=-1)
    p_V, order_V = p_V.sort(descending=True, stable=True)
    keep_V = p_V >= settings.min_p * p_V[0]
    keep_V &= p_V.cumsum(0) - p_V < settings.top_p  # what comes before does not reach top_p yet
    if settings.top_k:
        keep_V[settings.top_k :] = False
    keep_V[0] = True
    drawn = torch.multinomial(p_V * keep_V, 1, generator=generator)
    return int(order_V[drawn])


class _RouterRecord:
    """Records the experts that each layer's router chooses during one forward pass; idle for model None."""

    def __init__(self, model: Transformer | None) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._layers: dict[int, Tensor] = {}

    def __enter__(self) -> "_RouterRecord":
        for i, layer in enumerate(self._model.layers if self._model is not None else ()):
            router = getattr(layer, "router", None)
            if router is not None:

                def hook(module: Any, inputs: Any, routing: Routing, i: int = i) -> None:
                    self._layers[i] = routing.experts_TK

                self._hooks.callback(router.register_forward_hook(hook).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def last_position(self) -> tuple[tuple[int, ...], ...] | None:
        """Experts of the last token, `[layers][k]`; None when nothing was recorded."""
        if self._model is None:
            return None
        return tuple(tuple(experts_TK[-1].tolist()) for experts_TK in self._layers.values())
