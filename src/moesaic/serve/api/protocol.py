"""What clients may send: OpenAI's fields and ours, all of them obeyed; what is not supported is refused by its name.

`null` is the same as leaving a field out.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from moesaic.serve.options import MOST_LOGPROBS, Options

MOST_CHOICES = 64
MOST_IDS = 2**17  # to turn into text at once
BIG = 2**31 - 1
TokenId = Annotated[int, Field(ge=0, le=BIG)]
TokenName = Annotated[str, Field(pattern="^[0-9]{1,9}$")]


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which is no text") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
StopText = Annotated[Text, Field(min_length=1, max_length=256)]

_TOOLS = "this server calls no tools"
_TEXT = "this server reads and writes text only"
UNSUPPORTED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "tools": (_TOOLS, ()),
    "tool_choice": (_TOOLS, ("none",)),
    "parallel_tool_calls": (_TOOLS, ()),
    "functions": (_TOOLS, ()),
    "function_call": (_TOOLS, ("none",)),
    "web_search_options": (_TOOLS, ()),
    "response_format": ("this server does not constrain the form of answers", ({"type": "text"},)),
    "audio": (_TEXT, ()),
    "modalities": (_TEXT, (["text"],)),
    "prediction": ("drafts come from --draft", ()),
    "reasoning_effort": ("there is no such setting in these models", ("none",)),
    "verbosity": ("there is no such setting in these models", ()),
    "service_tier": ("there is one tier; use `priority`", ("auto", "default")),
    "store": ("this server stores nothing", (False,)),
    "metadata": ("this server stores nothing", ()),
    "user": ("this server tells callers apart by their API keys", ()),
    "safety_identifier": ("this server tells callers apart by their API keys", ()),
    "prompt_cache_key": ("every prompt's beginning is looked up in the cache without it", ()),
    "prompt_cache_retention": ("blocks stay in the cache until their memory is needed", ()),
    "moderation": ("this server does not judge texts", ()),
    "best_of": ("ask for `n` answers and choose", (1,)),
    "echo": ("the answer does not repeat the prompt", (False,)),
    "suffix": ("these models only continue a text", ()),
}
"""Fields of OpenAI's that are known and not supported: why not, and the values that ask for nothing."""


class Strict(BaseModel):
    """No conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """Only the fields that ask for something."""
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for name, (why, neutral) in UNSUPPORTED.items():
            if name in given and name not in cls.model_fields and given.pop(name) not in neutral:
                text = f"{name} is not supported: {why}; leave it out"
                raise PydanticCustomError("unsupported", text, {"field": name})
        return given


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class Sampling(Strict):
    """What both kinds of completion share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="answers to each prompt, with seeds counting up from `seed`")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2**63 - 1 - MOST_CHOICES, description="without one, another in each call")
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] = Field(default_factory=list)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[TokenName, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=1024, description="by token id"
    )
    top_k: int = Field(0, ge=0, le=BIG, description="choose among so many tokens; 0 is all")
    min_p: float = Field(0.0, ge=0, le=1, description="leave out tokens below this share of the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=64)
    ignore_eos: bool = Field(False, description="go on past the model's own end of an answer")
    speculate: bool = Field(True, description="whether a draft may guess")
    leniency: float = Field(0.0, ge=0, lt=1, description="no token gets more than 1 / (1 - leniency) times likelier")
    max_shift: float | None = Field(None, ge=0, le=1, description="mean shift per token at which leniency ends")
    require_exact: bool = Field(False, description="refuse rather than be lenient")
    priority: int = Field(0, ge=-100, le=100, description="higher goes first")

    @model_validator(mode="after")
    def _together(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream = true; leave it out")
        if self.require_exact and self.leniency:
            raise ValueError("require_exact and a leniency above 0 contradict each other; leave one out")
        return self

    def options(self, stop_ids: tuple[int, ...], max_tokens: int, logprobs: int | None) -> Options:
        """For the engine; `stop_ids` are the model's own. Raises ModelError, ServeError."""
        return Options(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=max_tokens,
            seed=secrets.randbelow(2**63 - MOST_CHOICES) if self.seed is None else self.seed,
            stop_ids=(() if self.ignore_eos else stop_ids) + tuple(self.stop_token_ids),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            logprobs=logprobs,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            speculate=self.speculate,
            leniency=self.leniency,
            max_shift=self.max_shift,
            require_exact=self.require_exact,
        )


class ChatRequest(Sampling):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=BIG, description="default: what the context leaves")
    max_tokens: int | None = Field(None, ge=1, le=BIG, description="older name of max_completion_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="only with logprobs")

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs = true; set it, or leave top_logprobs out")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; they are the same, so give one")
        return self


class CompletionRequest(Sampling):
    """`/v1/completions`: text, or token ids as they are, or a list of either."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_CHOICES)]
    )
    max_tokens: int = Field(16, ge=1, le=BIG)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


class TokenizeRequest(Strict):
    """`/tokenize`: a text as it is, or messages as the chat template renders them."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """`/detokenize`."""

    model: str | None = None
    tokens: list[TokenId] = Field(max_length=MOST_IDS)
