"""Byte-level BPE: training, saving as a standard Hugging Face folder, chat rendering, streaming.

The pre-tokenizer is GPT-2's, which llama.cpp knows; the chat template is ChatML, which every engine knows.
Text that merely looks like a control token ("<|im_end|>" typed by a user) is never turned into one: contents
are encoded piece by piece with control tokens switched off.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from moesaic.data.words import WordCache
from moesaic.errors import DataError

END_OF_TEXT = "<|endoftext|>"  # ends a text document, and pads
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"  # ends a turn
IMAGE = "<|image|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END, IMAGE)
SMALLEST_VOCABULARY = 256 + len(SPECIALS)

# Contents are trimmed, so that "role\n" and the content never merge into one token and can be encoded apart.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Messages = Sequence[Mapping[str, str]]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Train a byte-level BPE with exactly `vocab_size` entries; ids 0-3 are the special tokens.

    Deterministic in `texts`. If the text has too few pairs to merge, the rest is filled with
    `<|reserved_i|>`. Raises DataError when `vocab_size` cannot hold the 256 bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocab_size = {vocab_size} cannot hold 256 bytes and {len(SPECIALS)} special tokens; "
            f"use at least {SMALLEST_VOCABULARY}"
        )
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    missing = vocab_size - core.get_vocab_size()
    core.add_special_tokens([AddedToken(f"<|reserved_{i}|>", special=True) for i in range(missing)])
    return Tokenizer(core, CHATML, END_OF_TEXT, END_OF_TEXT, bos=END_OF_TEXT)


class Tokenizer:
    """A vocabulary with its chat template. Ids are ints; `len(tokenizer)` is the size of the vocabulary."""

    def __init__(
        self, core: tokenizers.Tokenizer, template: str | None, eos: str, pad: str, bos: str | None = None
    ) -> None:
        self._core = core
        self._plain = tokenizers.Tokenizer.from_str(core.to_str())  # sees no control tokens in text
        self._plain.encode_special_tokens = True
        pre = core.pre_tokenizer
        plain_bytes = isinstance(pre, pre_tokenizers.ByteLevel) and pre.use_regex and not pre.add_prefix_space
        self._words = WordCache(self._plain) if plain_bytes and core.normalizer is None else None
        self.chat_template = template
        named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
        self._tokens = {name: token for name, token in named.items() if token is not None}
        self.eos_id = self._id(eos)
        self.pad_id = self._id(pad)
        end = IM_END if core.token_to_id(IM_END) is not None else eos
        self.end_of_turn = end
        self.end_of_turn_id = self._id(end)
        self.prefix_ids: list[int] = list(core.encode("").ids)
        """What the tokenizer puts before a text: a begin-of-text token for Llama's kind, nothing for GPT-2's."""

    def __len__(self) -> int:
        return int(self._core.get_vocab_size())

    def shares_tokens(self, other: "Tokenizer") -> bool:
        """Whether every number stands for the same token in both."""
        return bool(self._core.get_vocab() == other._core.get_vocab())

    @property
    def is_chatml(self) -> bool:
        """Whether chats are rendered by moesaic's own template, which can be encoded piece by piece."""
        return self.chat_template == CHATML

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: end of turn and end of text."""
        return tuple(dict.fromkeys((self.end_of_turn_id, self.eos_id)))

    def id(self, token: str) -> int | None:
        """Id of a token by its exact text, or None."""
        return self._core.token_to_id(token)

    def _id(self, token: str) -> int:
        found = self._core.token_to_id(token)
        if found is None:
            raise DataError(
                f"the tokenizer has no token {token!r}; its tokenizer_config.json and tokenizer.json differ"
            )
        return int(found)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of `text`; with `specials`, control tokens written in the text count as such."""
        return _ids(self._core if specials else self._plain, [text])[0]  # as a batch: other threads go on meanwhile

    def at_least(self, text: str) -> int:
        """Tokens that a text certainly has, from its length alone; 0 when the vocabulary does not tell."""
        return 0 if self._words is None else -(-len(text) // self._longest)

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token are at most its bytes, each of which is one in a byte-level vocabulary."""
        return max(map(len, self._core.get_vocab()))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, without control tokens; uses the threads that `tokenizers` was allowed."""
        if self._words is None:
            return _ids(self._plain, list(texts))
        short = [WordCache.takes(text) for text in texts]
        fast = iter(self._words.encode([text for text, take in zip(texts, short, strict=True) if take]))
        slow = iter(_ids(self._plain, [text for text, take in zip(texts, short, strict=True) if not take]))
        return [next(fast) if take else next(slow) for take in short]

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """Text of `ids`; incomplete UTF-8 becomes U+FFFD. `specials` keeps control tokens visible."""
        return str(self._core.decode(list(ids), skip_special_tokens=not specials))

    def stream_decode(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` as it becomes certain: bytes of an unfinished character are held back."""
        stream = decoders.DecodeStream(skip_special_tokens=True)
        for token in ids:
            if chunk := stream.step(self._core, token):
                yield chunk

    def stream_decoder(self) -> Callable[[int], str]:
        """The push form of `stream_decode`: a function from the next id to the text that became certain."""
        stream = decoders.DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._core, token) or ""

    def chat_text(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The conversation as the chat template writes it. Raises DataError without a template or when it
        refuses."""
        if not self.chat_template:
            raise DataError("this tokenizer has no chat template; add chat_template.jinja to its folder")
        return self._render(messages, add_generation_prompt, self._tokens)

    @cached_property
    def _render(self) -> Callable[[Messages, bool, Mapping[str, str]], str]:
        """Compiled on first use: a template that jinja cannot read must not keep a model from being read."""
        return _compile(self.chat_template or "")

    def render_chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ready for the model to answer. Raises DataError."""
        if not self.is_chatml:
            return self.encode(self.chat_text(messages, add_generation_prompt), specials=True)
        contents = self.encode_batch([m["content"].strip() for m in messages])
        ids: list[int] = []
        for message, content in zip(messages, contents, strict=True):
            ids += [*self.turn_header(message["role"]), *content, *self.turn_footer]
        return ids + (self.turn_header("assistant") if add_generation_prompt else [])

    def turn_header(self, role: str) -> list[int]:
        """ChatML only: ids of `<|im_start|>role\\n`."""
        return [self._id(IM_START), *self.encode(role + "\n")]

    @property
    def turn_footer(self) -> list[int]:
        """ChatML only: ids of `<|im_end|>\\n`."""
        return [self._id(IM_END), *self.encode("\n")]

    def save(self, folder: Path, max_length: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; `max_length` in tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._tokens,
            "clean_up_tokenization_spaces": False,
        }
        if max_length is not None:
            config["model_max_length"] = max_length
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
            _write(folder / "chat_template.jinja", self.chat_template)
        _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
        _write(folder / "tokenizer.json", self._core.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a Hugging Face folder or a lone tokenizer.json. Raises DataError.

        A lone file, or a folder without tokenizer_config.json, must have `<|endoftext|>` (or `</s>`) to end
        texts.
        """
        folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
        if not file.is_file():
            raise DataError(f"no tokenizer at {file}; give a folder with tokenizer.json, or that file")
        try:
            core = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file} is not a tokenizer that `tokenizers` can read: {error}") from error
        core.no_truncation()
        core.no_padding()
        config = _read_json(folder / "tokenizer_config.json") if path.is_dir() else {}
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if path.is_dir() and template_file.is_file() else None
        if template is None and isinstance(config.get("chat_template"), str):
            template = config["chat_template"]
        known = [t for t in (END_OF_TEXT, "</s>", IM_END) if core.token_to_id(t) is not None]
        eos = _text(config.get("eos_token")) or next(iter(known), None)
        if eos is None:
            raise DataError(f"{file}: cannot tell which token ends a text; add eos_token to tokenizer_config.json")
        if template is None and core.token_to_id(IM_START) is not None and core.token_to_id(IM_END) is not None:
            template = CHATML
        bos = _text(config.get("bos_token"))
        return cls(core, template, eos, _text(config.get("pad_token")) or eos, bos)


def _ids(core: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in core.encode_batch_fast(texts, add_special_tokens=False)]


def _text(token: object) -> str | None:
    """Token text from a config entry, which is a string or a serialised AddedToken."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); restore it from where the tokenizer came from") from error
    return value if isinstance(value, dict) else {}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for masks; here it only shows its contents."""

    tags = {"generation"}  # noqa: RUF012 - so the base class declares it

    def parse(self, parser: Parser) -> list[Node]:
        """The nodes inside."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _compile(template: str) -> Callable[[Messages, bool, Mapping[str, str]], str]:
    """A chat template as a function; sandboxed, since templates arrive with foreign models."""

    def refuse(message: str) -> None:
        raise DataError(f"the chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        compiled = environment.from_string(template)
    except Exception as error:
        raise DataError(f"the chat template is not valid jinja: {error}") from error

    def render(messages: Messages, add_generation_prompt: bool, tokens: Mapping[str, str]) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokens)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"the chat template fails on these messages: {error}") from error

    return render
