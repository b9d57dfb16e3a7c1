"""Answers in OpenAI's shapes, as plain dictionaries, and what is ours beside them in a field `moesaic`."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.data import Tokenizer
from moesaic.serve.answer import Piece, Shown
from moesaic.serve.api.asking import Choice

Json = dict[str, Any]


class ChatShape:
    """`/v1/chat/completions`."""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._id, self._model, self._created = f"chatcmpl-{uuid.uuid4().hex}", model, int(time.time())

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Without a stream."""
        return self._envelope("chat.completion") | {
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._probabilities(choice.shown),
                    "finish_reason": choice.finish,
                }
                for choice in choices
            ]
        }

    def first(self, choice: Choice) -> Json:
        """What a stream begins with."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None, None)

    def part(self, choice: Choice, piece: Piece) -> Json:
        """What has become certain."""
        chunk = self._chunk(choice, {"content": piece.text}, self._probabilities(piece.tokens), None)
        return chunk | {"moesaic": {"tokens": marks(piece.tokens)}}

    def last(self, choice: Choice) -> Json:
        """The end of one choice."""
        return self._chunk(choice, {}, None, choice.finish)

    def tail(self) -> Json:
        """What carries the usage of a stream."""
        return self._envelope("chat.completion.chunk") | {"choices": []}

    def _chunk(self, choice: Choice, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
        entry = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope("chat.completion.chunk") | {"choices": [entry]}

    def _envelope(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _probabilities(self, tokens: Sequence[Shown]) -> Json | None:
        if not self._logprobs:
            return None
        entries = []
        for token in tokens:
            top = [self._entry(other, logprob) for other, logprob in token.note.top]
            entries.append(self._entry(token.id, token.note.logprob) | {"top_logprobs": top})
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> Json:
        text = self._tokenizer.decode([token], specials=True)
        whole = "\ufffd" not in text  # else it is a part of a character, whose bytes the tokenizer does not tell
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


class CompletionShape:
    """`/v1/completions`."""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._id, self._model, self._created = f"cmpl-{uuid.uuid4().hex}", model, int(time.time())

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Without a stream."""
        return self.tail() | {"choices": [self._entry(c, c.text, c.shown, 0, c.finish) for c in choices]}

    def first(self, choice: Choice) -> None:
        """Nothing."""

    def part(self, choice: Choice, piece: Piece) -> Json:
        """What has become certain."""
        offset = len(choice.text) - len(piece.text)
        entry = self._entry(choice, piece.text, piece.tokens, offset, None)
        return self.tail() | {"choices": [entry], "moesaic": {"tokens": marks(piece.tokens)}}

    def last(self, choice: Choice) -> Json:
        """The end of one choice."""
        return self.tail() | {"choices": [self._entry(choice, "", (), len(choice.text), choice.finish)]}

    def tail(self) -> Json:
        """What carries the usage of a stream."""
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [],
        }

    def _entry(self, choice: Choice, text: str, tokens: Sequence[Shown], offset: int, finish: str | None) -> Json:
        logprobs = self._probabilities(tokens, offset) if self._logprobs else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _probabilities(self, tokens: Sequence[Shown], offset: int) -> Json:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.note.logprob for token in tokens],
            "top_logprobs": [{self._text(other): logprob for other, logprob in token.note.top} for token in tokens],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], specials=True)


Shape = ChatShape | CompletionShape


def marks(tokens: Sequence[Shown]) -> list[Json]:
    """What is known of each token: whether the draft guessed it, and how far leniency went."""
    return [
        {"text": t.text, "drafted": t.note.drafted, "lenient": t.note.lenient, "shift": t.note.shift} for t in tokens
    ]


def usage(choices: Sequence[Choice]) -> Mapping[str, Any]:
    """Of all choices together. Times are of the first token of any and of the slowest writer's whole answer."""
    used = [(choice, choice.usage) for choice in choices if choice.usage is not None]
    prompts = {id(choice.prompt): (len(choice.prompt), u.cached_tokens) for choice, u in used}
    prompt, cached = (sum(column) for column in zip(*prompts.values(), strict=True))
    completion = sum(choice.answer.completion_tokens for choice, _ in used)
    generated = sum(u.completion_tokens for _, u in used)
    accepted, drafted = sum(u.accepted for _, u in used), sum(u.drafted for _, u in used)
    costs = [choice.cost for choice, _ in used if choice.cost is not None]
    first = [u.first_token - u.arrived for _, u in used if u.first_token is not None]
    writing = [u.token_times[-1] - u.token_times[0] for _, u in used if len(u.token_times) > 1]
    written = sum(len(u.token_times) - 1 for _, u in used if len(u.token_times) > 1)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
        "moesaic": {
            "mean_shift": sum(u.shift for _, u in used) / generated if generated else 0.0,
            "lenient_tokens": sum(u.lenient for _, u in used),
            "cost": sum(costs) if costs else None,
            "ttft_s": min(first, default=None),
            "tokens_per_s": written / max(writing) if writing and max(writing) > 0 else None,
        },
    }
