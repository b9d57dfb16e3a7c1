"""From tokens to text: what of an answer is certain, and where a stop text cuts it.

A token is shown when its text is: bytes of an unfinished character wait for the rest of it, and what could be the
beginning of a stop text waits until it is one or is not. Pieces do not depend on how tokens came in steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.data import Tokenizer
from moesaic.serve.options import Options
from moesaic.serve.step_plan import FinishReason, TokenNote


@dataclass(frozen=True)
class Shown:
    """A token of the answer with the text that became certain with it: "" inside a character of several tokens."""

    id: int
    text: str
    note: TokenNote


@dataclass(frozen=True)
class Piece:
    """What became certain. The last piece has a reason, and nothing follows it."""

    tokens: tuple[Shown, ...] = ()
    finish: FinishReason | None = None
    stopped: bool = False
    """A stop text was found: the engine does not know yet that the answer has ended."""

    @property
    def text(self) -> str:
        """The texts of its tokens."""
        return "".join(token.text for token in self.tokens)


class Answer:
    """Text of one answer from its tokens. Stop tokens have no text, stop texts are not part of the answer."""

    def __init__(self, tokenizer: Tokenizer, options: Options) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._decode = tokenizer.stream_decoder()
        self._ids: list[int] = []
        self._held: list[Shown] = []
        self._decoded = 0  # characters that the decoder has given
        self._tail = ""  # the texts of what is held
        self._longest = max(map(len, options.stop), default=0)
        self.completion_tokens = 0
        """Tokens up to the end, with the one that ended it."""
        self.finished = False

    def push(self, tokens: Sequence[int], notes: Sequence[TokenNote], finish: FinishReason | None = None) -> Piece:
        """Take new tokens, and the reason if they are the last. After the end nothing more comes of it."""
        if self.finished:
            return Piece()
        for token, note in zip(tokens, notes, strict=True):
            self.completion_tokens += 1
            if token in self._options.stop_ids:
                break  # the engine ends the answer here
            self._ids.append(token)
            if (cut := self._hold(token, self._decode(token), note)) is not None:
                return self._end("stop", cut, stopped=finish is None)
        if finish is not None:
            cut = self._hold_more(self._unfinished()) if self._held else None
            return self._end(finish if cut is None else "stop", cut)
        return Piece(self._release(self._possible()))

    def _hold(self, token: int, text: str, note: TokenNote) -> int | None:
        """Hold a token; the position in the held text at which a stop text begins, if there is one now."""
        self._held.append(Shown(token, "", note))
        return self._hold_more(text)

    def _hold_more(self, text: str) -> int | None:
        last = self._held[-1]
        self._held[-1] = Shown(last.id, last.text + text, last.note)
        self._decoded += len(text)
        self._tail += text
        # The one that is complete first counts, whatever came in one token: its beginning then is the earliest.
        found = [(at + len(stop), at) for stop in self._options.stop if (at := self._tail.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _unfinished(self) -> str:
        """What the decoder keeps of a character that will not be finished."""
        return self._tokenizer.decode(self._ids)[self._decoded :]

    def _possible(self) -> int:
        """Position in the held text from which on it could become a stop text; its length when nowhere."""
        for start in range(max(0, len(self._tail) - self._longest + 1), len(self._tail)):
            end = self._tail[start:]
            if any(stop.startswith(end) for stop in self._options.stop):
                return start
        return len(self._tail)

    def _release(self, certain: int) -> tuple[Shown, ...]:
        """Let go of the tokens that lie wholly in the first `certain` characters of what is held."""
        count = at = 0
        for token in self._held:
            if at + len(token.text) > certain:
                break
            at += len(token.text)
            count += 1
        if count == len(self._held):
            while count and not self._held[count - 1].text:
                count -= 1  # perhaps the beginning of a character, whose text comes with a later token
        gone, self._held = tuple(self._held[:count]), self._held[count:]
        self._tail = self._tail[at:]
        return gone

    def _end(self, finish: FinishReason, cut: int | None, stopped: bool = False) -> Piece:
        self.finished = True
        left = len(self._tail) if cut is None else cut
        tokens = []
        for token in self._held:
            if cut is not None and not left:
                break
            tokens.append(Shown(token.id, token.text[:left], token.note))
            left -= len(tokens[-1].text)
        return Piece(tuple(tokens), finish, stopped)
