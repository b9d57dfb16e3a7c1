"""A model folder in this process: the Python API, and what the terminal verbs use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from moesaic.data import Tokenizer
from moesaic.errors import DataError, ModelError
from moesaic.interop import load_model, read_json
from moesaic.model import SamplingSettings, Step, Transformer, generate_tokens
from moesaic.model.generate import FinishReason

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


class SamplingOptions(TypedDict, total=False):
    """Fields of `SamplingSettings`, as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Reply:
    """A whole answer. `tokens` counts new tokens; `finish_reason` is "stop", or "length" when it was cut."""

    text: str
    tokens: int
    finish_reason: FinishReason


def load(folder: str | Path, dtype: torch.dtype | None = None) -> "LocalModel":
    """Open a model folder, or a run folder that has one. Raises MoesaicError."""
    return LocalModel(Path(folder), dtype=dtype)


class LocalModel:
    """A model with its tokenizer, on the GPU if there is one.

    Weights are kept as stored unless `dtype` is given. Every method takes the fields of `SamplingSettings` as
    keywords; answers end at the folder's own stop ids unless `stop_ids` says otherwise.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype | None = None, model: Transformer | None = None) -> None:
        """`model`: other weights than the folder's, with its tokenizer."""
        self.folder = find_model(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Not by `with device`: under it torch copies what is mapped number by number.
        found = load_model(self.folder, dtype=dtype, device=device) if model is None else model
        self.model = found.requires_grad_(False)
        self.tokenizer = Tokenizer.load(self.folder)
        vocab_size = self.model.config.vocab_size
        if len(self.tokenizer) > vocab_size:
            raise ModelError(
                f"{self.folder}: the tokenizer has {len(self.tokenizer)} entries, the model {vocab_size}; "
                "copy the tokenizer that the model was trained with"
            )
        self.stop_ids = _stop_ids(self.folder) or self.tokenizer.stop_ids

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.model.config.context

    def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> str:
        """The continuation of a text, or the answer to messages."""
        return self.reply(prompt, **options).text

    def chat(self, messages: Sequence[Message], **options: Unpack[SamplingOptions]) -> Reply:
        """The answer to `messages`, each with `role` and `content`. Raises MoesaicError."""
        return self.reply(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """The same as `generate`, piece by piece as the text becomes certain."""
        steps = self.steps(prompt, **options)  # here, so that a bad call fails at once
        return (text for text, _ in self.decoded(steps) if text)

    def reply(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Reply:
        """The whole answer to a text or to messages, with its length and why it ended."""
        pieces = list(self.decoded(self.steps(prompt, **options)))
        reason = pieces[-1][1].finish_reason
        assert reason is not None
        return Reply("".join(text for text, _ in pieces), len(pieces), reason)

    def steps(
        self, prompt: Prompt, *, show_experts: bool = False, **options: Unpack[SamplingOptions]
    ) -> Iterator[Step]:
        """Token by token. Raises MoesaicError before the first one."""
        return generate_tokens(self.model, self.encode(prompt), self.settings(**options), show_experts=show_experts)

    def decoded(self, steps: Iterator[Step]) -> Iterator[tuple[str, Step]]:
        """Each step with the text that it made certain; a stop token has none, the last brings the rest."""
        push, ids, said = self.tokenizer.stream_decoder(), [], 0
        for step in steps:
            if step.finish_reason != "stop":
                ids.append(step.token)
            text = push(step.token) if step.finish_reason != "stop" else ""
            said += len(text)
            if step.finish_reason is not None:  # an unfinished character was held back
                text += self.tokenizer.decode(ids)[said:]
            yield text, step

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a text, or of messages as the chat template renders them. Raises MoesaicError."""
        if isinstance(prompt, str):
            return [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        for message in prompt:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                raise DataError(f"a message needs a role and a content, both text; got {message!r}")
        return self.tokenizer.render_chat(prompt)

    def settings(self, **options: Unpack[SamplingOptions]) -> SamplingSettings:
        """Checked settings. Raises ModelError."""
        known = {f.name for f in fields(SamplingSettings)}
        if unknown := set(options) - known:
            raise ModelError(f"unknown setting {min(unknown)!r}; known are {', '.join(sorted(known))}")
        return replace(SamplingSettings(stop_ids=self.stop_ids), **options)


def find_model(folder: Path) -> Path:
    """`folder` itself, its `model/`, or that of the run called so. Raises ModelError."""
    for place in (folder, folder / "model", Path("runs") / folder / "model"):
        if (place / "config.json").is_file():
            return place
    raise ModelError(f"no model in {folder}: it has no config.json; give a model folder, or a run that has finished")


def _stop_ids(folder: Path) -> tuple[int, ...]:
    """What generation_config.json says, which may be one id, a list or nothing."""
    path = folder / "generation_config.json"
    found: Any = read_json(path).get("eos_token_id") if path.is_file() else None
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)
