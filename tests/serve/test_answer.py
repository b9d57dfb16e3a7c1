"""Text from tokens: the same whatever the chunks, whole characters only, cut at the first complete stop text."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import Tokenizer, train_tokenizer
from moesaic.serve.answer import Answer, Piece
from moesaic.serve.options import Options
from moesaic.serve.step_plan import PLAIN, TokenNote

STOP_ID = 2


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(["hello there, how are you? abab abcab aé漢€ aé漢€ banana"] * 5, 290)


def push_all(answer: Answer, ids: list[int], chunks: list[int], finish: str = "length") -> list[Piece]:
    """Pieces of `ids` in steps of the given sizes, the last of them with a reason, as an engine delivers them."""
    pieces, at, sizes = [], 0, iter(chunks * len(ids) or [1])
    while at < len(ids) and not answer.finished:
        end = min(at + next(sizes), len(ids))
        step = ids[at:end]
        if STOP_ID in step:
            step = step[: step.index(STOP_ID) + 1]
            end = len(ids)
        reason = ("stop" if step[-1] == STOP_ID else finish) if end == len(ids) else None
        pieces.append(answer.push(step, [PLAIN] * len(step), reason))  # type: ignore[arg-type]
        at = end
    return pieces


def cut(text: str, stops: tuple[str, ...]) -> str:
    """The reference: up to the beginning of the first text that is complete."""
    for end in range(1, len(text) + 1):
        if found := [len(text[:end]) - len(s) for s in stops if text[:end].endswith(s)]:
            return text[: min(found)]
    return text


words = st.text("ab é漢€c,", min_size=1, max_size=4)
answers = st.one_of(
    st.lists(st.integers(0, 289), max_size=30),  # any tokens: broken characters too
    st.text("abc é漢€ ban", max_size=30).map(lambda text: tokenizer().encode(text)),
)


@given(answers, st.lists(words, max_size=3), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_pieces_join_to_the_text_up_to_the_first_stop_text(ids: list[int], stops: list[str], chunks: list[int]) -> None:
    answer = Answer(tokenizer(), Options(stop=tuple(stops), stop_ids=(STOP_ID,)))
    pieces = push_all(answer, ids, chunks)
    said = ids[: ids.index(STOP_ID)] if STOP_ID in ids else ids
    whole = tokenizer().decode(said)
    assert "".join(p.text for p in pieces) == cut(whole, tuple(stops))
    if ids:
        assert answer.finished
        assert [p.finish is not None for p in pieces] == [False] * (len(pieces) - 1) + [True]
        stopped = STOP_ID in ids or cut(whole, tuple(stops)) != whole or any(whole.endswith(s) for s in stops)
        assert pieces[-1].finish == ("stop" if stopped else "length")
    shown = [token.id for p in pieces for token in p.tokens]
    assert shown == said[: len(shown)]  # each token once, in order


@given(answers.filter(lambda ids: STOP_ID not in ids), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_without_stop_texts_every_token_is_shown_and_no_character_is_broken(ids: list[int], chunks: list[int]) -> None:
    answer = Answer(tokenizer(), Options())
    pieces = push_all(answer, ids, chunks)
    assert [token.id for p in pieces for token in p.tokens] == ids
    assert all(not p.text.endswith("\ufffd") for p in pieces[:-1])


def test_a_character_of_several_tokens_waits_for_the_last_of_them() -> None:
    ids = train_tokenizer(["plain"] * 5, 260).encode("a€b")
    answer = Answer(train_tokenizer(["plain"] * 5, 260), Options())
    assert [answer.push([i], [PLAIN]).text for i in ids] == ["a", "", "", "€", "b"]


def test_what_could_become_a_stop_text_is_held_and_let_go_when_it_does_not() -> None:
    plain = train_tokenizer(["x"] * 5, 260)  # a token for each byte
    answer = Answer(plain, Options(stop=("END",)))
    texts = [answer.push(plain.encode(c), [PLAIN]).text for c in "aENbE"]
    assert texts == ["a", "", "", "ENb", ""]
    last = answer.push(plain.encode("N") + plain.encode("D") + plain.encode("!"), [PLAIN] * 3)
    assert (last.text, last.finish, last.stopped) == ("", "stop", True)
    assert answer.completion_tokens == 7  # what comes after the end does not count
    assert answer.push(plain.encode("more"), [PLAIN] * 4, "stop") == Piece()


def test_a_stop_text_inside_a_token_cuts_the_token() -> None:
    words = train_tokenizer(["hello there"] * 5, 280)
    ids = words.encode("hello there")
    assert len(ids) == 2
    answer = Answer(words, Options(stop=("here",)))
    pieces = [answer.push([i], [TokenNote(drafted=True)]) for i in ids]
    assert "".join(p.text for p in pieces) == "hello t"
    assert pieces[-1].stopped
    assert all(token.note.drafted for p in pieces for token in p.tokens)


@pytest.mark.parametrize("finish", ["stop", "length", "abort"])
def test_held_text_comes_with_the_end(finish: str) -> None:
    plain = train_tokenizer(["x"] * 5, 260)
    answer = Answer(plain, Options(stop=("END",)))
    assert answer.push(plain.encode("EN"), [PLAIN] * 2).text == ""
    last = answer.push([], [], finish)  # type: ignore[arg-type]
    assert (last.text, last.finish, last.stopped) == ("EN", finish, False)
