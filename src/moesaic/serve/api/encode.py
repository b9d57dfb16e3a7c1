"""Texts and conversations as token ids, refused when they cannot fit; in a worker thread, as long ones take seconds."""

from collections.abc import Sequence

from moesaic.errors import DataError
from moesaic.serve.api.errors import ApiError
from moesaic.serve.api.service import Service


class Encoder:
    """Of one model."""

    def __init__(self, service: Service) -> None:
        self._tokenizer, self._context = service.engine.model.tokenizer, service.engine.model.context

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation, up to where the answer begins. Raises ApiError."""
        self._check(sum(self._tokenizer.at_least(m["content"]) for m in messages), "messages", "at least ")
        try:
            ids = self._tokenizer.render_chat(messages)
        except DataError as error:
            raise ApiError(400, str(error), param="messages", code="invalid_value") from error
        self._check(len(ids), "messages")
        return ids

    def prompt(self, prompt: str | list[int]) -> list[int]:
        """Ids of a text to continue; ids stay as they are. Raises ApiError."""
        if isinstance(prompt, str):
            self._check(self._tokenizer.at_least(prompt), "prompt", "at least ")
            prompt = [*self._tokenizer.prefix_ids, *self._tokenizer.encode(prompt)]
        if not prompt:
            raise ApiError(400, "the prompt is empty; give at least one token", param="prompt", code="invalid_value")
        self._check(len(prompt), "prompt")
        return prompt

    def _check(self, tokens: int, name: str, about: str = "") -> None:
        if tokens >= self._context:
            raise ApiError(
                400,
                f"the prompt has {about}{tokens} tokens, and the model's context of {self._context} must hold the "
                f"answer too; shorten it to at most {self._context - 1}",
                param=name, code="context_length_exceeded",
            )  # fmt: skip
