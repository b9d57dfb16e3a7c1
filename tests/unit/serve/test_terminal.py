"""Chat and batches in the terminal, with the terminal replaced by lists."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moesaic.errors import MoesaicError
from moesaic.serve.local import LocalModel
from moesaic.serve.terminal import Chat, answer_rows, stream_text


def talk(local: LocalModel, *lines: str, **options: float) -> tuple[Chat, str, list[str]]:
    """Run a chat over `lines`; returns it with what it wrote and remarked."""
    source, out, notes = iter(lines), io.StringIO(), list[str]()

    def ask() -> str:
        for line in source:
            return line
        raise EOFError

    chat = Chat(local, ask, out, notes.append, **{"max_tokens": 8, "temperature": 0, **options})  # type: ignore[arg-type]
    chat.run()
    return chat, out.getvalue(), notes


def test_history_grows_by_question_and_answer(local: LocalModel) -> None:
    chat, out, _ = talk(local, "hello", "", "how are you?")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert out == "".join(m["content"] + "\n" for m in chat.messages if m["role"] == "assistant")
    alone = local.generate([{"role": "user", "content": "hello"}], max_tokens=8, temperature=0)
    assert chat.messages[1]["content"] == alone


def test_the_second_answer_sees_the_first_question(local: LocalModel) -> None:
    chat, _, _ = talk(local, "hello", "and you?")
    expected = local.generate(chat.messages[:3], max_tokens=8, temperature=0)
    assert chat.messages[3]["content"] == expected


def test_reset_forgets_quit_ends_and_other_commands_are_explained(local: LocalModel) -> None:
    chat, _, notes = talk(local, "hello", "/reset", "/what is it", "/quit", "never read")
    assert chat.messages == []
    assert notes[1:] == ["forgotten", f"/what is not a command: {notes[0]}"]


def test_a_system_message_comes_first(local: LocalModel) -> None:
    chat = Chat(local, lambda: "", io.StringIO(), print, "be kind")
    assert chat.system == [{"role": "system", "content": "be kind"}]


def test_old_turns_are_forgotten_in_pairs_when_the_context_is_full(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def stream(messages: list[dict[str, str]], **options: object) -> Iterator[str]:
        asked.append([m["role"] for m in messages])
        yield "a" * len(asked)  # turns of different lengths, so that one more or less matters

    monkeypatch.setattr(local, "stream", stream)
    chat, _, notes = talk(local, *["hello"] * 20)
    assert len(chat.messages) < 40
    assert any("forgot the 2 oldest messages: the context holds 128 tokens" in n for n in notes)
    assert all(roles[::2] == ["user"] * (len(roles) // 2 + 1) for roles in asked)


def test_a_question_that_does_not_fit_is_refused_and_the_chat_goes_on(local: LocalModel) -> None:
    chat, out, notes = talk(local, "word " * 300, "hello")
    assert "shorten the prompt" in notes[1]
    assert chat.messages[0]["content"] == "hello"
    assert out.count("\n") >= 1


def test_ctrl_c_stops_the_answer_not_the_program(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> Iterator[str]:
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "stream", interrupted)
    chat, out, notes = talk(local, "one", "two")
    assert out == "so far\n" * 2
    assert [m["content"] for m in chat.messages] == ["one", "so far", "two", "so far"]
    assert notes.count("\nstopped") == 2


def test_a_wrong_setting_shows_before_the_first_question(local: LocalModel) -> None:
    with pytest.raises(MoesaicError, match="temperature"):
        talk(local, temperature=-1)


def test_text_streams_and_ends_its_line(local: LocalModel) -> None:
    out = io.StringIO()
    stream_text(local, "hello", out, temperature=0, max_tokens=5)
    assert out.getvalue() == local.generate("hello", temperature=0, max_tokens=5) + "\n"


def test_a_batch_keeps_order_and_keys_and_goes_past_rows_that_fail(local: LocalModel, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "id": 7},
        {"prompt": ""},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": ["hello"]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    done: list[int] = []
    answers = answer_rows(
        local, tmp_path / "in.jsonl", tmp_path / "o/out.jsonl", done.append, temperature=0, max_tokens=4
    )
    assert (answers.answered, answers.failed) == (2, 2)
    found = [json.loads(line) for line in (tmp_path / "o/out.jsonl").read_text().splitlines()]
    assert found[0] == rows[0] | vars(local.reply("hello", temperature=0, max_tokens=4))
    assert "the prompt is empty" in found[1]["error"]
    assert found[2]["text"] == local.generate(rows[2]["messages"], temperature=0, max_tokens=4)  # type: ignore[arg-type]
    assert "needs a role" in found[3]["error"]
    assert done == [1, 2, 3, 4]
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{', "line 2: not JSON"),
        (b'{"text": "a"}\n', "line 1: needs a text `prompt` or a list `messages`"),
        (b"[1]\n", "line 1: needs"),
        (b"\xff\n", "takes a UTF-8 .jsonl file"),
    ],
)
def test_a_bad_batch_is_refused_before_the_first_answer(
    local: LocalModel, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(MoesaicError) as error:
        answer_rows(local, tmp_path / "in.jsonl", tmp_path / "out.jsonl", print)
    assert message in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_interrupted_batch_leaves_nothing(local: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n')

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_rows(local, tmp_path / "in.jsonl", tmp_path / "out.jsonl", stop, max_tokens=2)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
