"""Generate and chat in a terminal or a pipe: streams of text in, streams of text out."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, Unpack

from moesaic.errors import DataError, MoesaicError
from moesaic.serve.local import LocalModel, SamplingOptions

HELP = "/reset forgets the conversation, /quit ends, Ctrl-C stops an answer"
ANSWER_SHARE = 4  # the conversation may fill the context up to 1 - 1/this, so that the answer has room


def stream_text(model: LocalModel, prompt: str, out: TextIO, **options: Unpack[SamplingOptions]) -> None:
    """Write the continuation of `prompt` to `out` as it comes."""
    for piece in model.stream(prompt, **options):
        out.write(piece)
        out.flush()
    out.write("\n")


@dataclass(frozen=True)
class Answers:
    """How many rows of a batch were answered and how many could not be."""

    answered: int
    failed: int


class Chat:
    """A conversation. `ask` reads a line (EOFError at the end), `out` takes answers, `note` takes remarks."""

    def __init__(
        self,
        model: LocalModel,
        ask: Callable[[], str],
        out: TextIO,
        note: Callable[[str], None],
        system: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:
        self.model, self.ask, self.out, self.note, self.options = model, ask, out, note, options
        self.system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = []
        model.settings(**options)  # a wrong setting ends the program now, not after the first question

    def run(self) -> None:
        """Until /quit or the end of the input. Ctrl-C stops the answer; at the prompt it ends the program."""
        self.note(HELP)
        while True:
            try:
                line = self.ask().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/quit":
                return
            if line == "/reset":
                self.messages = []
                self.note("forgotten")
            elif line.startswith("/"):
                self.note(f"{line.split()[0]} is not a command: {HELP}")
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            self._forget_to_fit()
            for piece in self.model.stream(self.system + self.messages, **self.options):
                said.append(piece)
                self.out.write(piece)
                self.out.flush()
        except KeyboardInterrupt:
            self.note("\nstopped")
        except MoesaicError as error:
            self.messages.pop()
            self.note(f"error: {error}")
            return
        self.out.write("\n")
        self.out.flush()
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _forget_to_fit(self) -> None:
        """Drop the oldest question and answer until an answer has room."""
        limit = self.model.context - self.model.context // ANSWER_SHARE
        dropped = 0
        while len(self.messages) > 2 and len(self.model.encode(self.system + self.messages)) > limit:
            self.messages = self.messages[2:]
            dropped += 2
        if dropped:
            self.note(f"(forgot the {dropped} oldest messages: the context holds {self.model.context} tokens)")


def answer_rows(
    model: LocalModel,
    source: Path,
    target: Path,
    progress: Callable[[int], None],
    **options: Unpack[SamplingOptions],
) -> Answers:
    """Answer every row of a .jsonl file (`prompt`, or `messages`): adds `text`, `tokens`, `finish_reason`.

    The file appears under its name when it is whole. A row that cannot be answered gets `error` instead of
    stopping the rest. Raises DataError, before the first answer, for a row without one of the keys.
    """
    rows = list(_rows(source))  # checked before hours are spent on the first of them
    failed = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                for done, row in enumerate(rows, 1):
                    answer = _answer(model, row, options)
                    failed += "error" in answer
                    out.write(json.dumps(row | answer, ensure_ascii=False) + "\n")
                    progress(done)
            Path(partial).chmod(0o644)  # mkstemp makes it private
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}; choose another --out") from error
    return Answers(len(rows) - failed, failed)


def _answer(model: LocalModel, row: dict[str, Any], options: SamplingOptions) -> dict[str, Any]:
    try:
        reply = model.reply(row["prompt"] if "prompt" in row else row["messages"], **options)
    except MoesaicError as error:
        return {"error": str(error)}
    return {"text": reply.text, "tokens": reply.tokens, "finish_reason": reply.finish_reason}


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        lines: Iterable[str] = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {source}: {error}; --batch takes a UTF-8 .jsonl file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: not JSON ({error})") from error
        usable = isinstance(row, dict) and (isinstance(row.get("prompt"), str) or isinstance(row.get("messages"), list))
        if not usable:
            raise DataError(f"{source}, line {number}: needs a text `prompt` or a list `messages`")
        yield row
