"""Chats: four formats become the same messages; the mask covers what the assistant says and its end, nothing
else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import Tokenizer, content_bytes, encode_chat, encode_chats, train_tokenizer
from moesaic.data.chat import read_chitchat, read_row, row_format
from moesaic.errors import DataError

EXCHANGE = [{"role": "user", "content": "How far is it?"}, {"role": "assistant", "content": "Two days."}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["user\nHow far is it?", "assistant\nTwo days, thank you."] * 20, 300)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": EXCHANGE}),
        (
            "messages",
            {
                "messages": [
                    {**EXCHANGE[0], "content": [{"type": "text", "text": "How far is it?"}]},
                    EXCHANGE[1],
                ]
            },
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "How far is it?"},
                    {"from": "gpt", "value": "Two days."},
                ]
            },
        ),
        ("alpaca", {"instruction": "How far is it?", "input": "", "output": "Two days."}),
        ("question", {"question": "How far is it?", "answer": "Two days."}),
    ],
)
def test_formats_are_told_apart_and_give_the_same_messages(form: str, row: dict) -> None:
    assert row_format(row) == form
    assert read_row(row, form) == EXCHANGE


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert read_row(row, "alpaca")[0]["content"] == "Add.\n\n1 2"


def test_two_people_become_user_and_assistant() -> None:
    def say(sender: str, *lines: str) -> list[dict[str, str]]:
        return [{"sender": sender, "text": line, "timestamp": ""} for line in lines]

    talks = {
        "a": {"messages": [say("x", "Hi", " "), say("x", "there"), say("y", "Hello"), say("x", "Bye")]},
        "monologue": {"messages": [say("x", "anyone?"), say("x", "hello?")]},
    }
    assert list(read_chitchat(talks)) == [
        (
            "a",
            [
                {"role": "user", "content": "Hi\nthere"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Bye"},
            ],
        )
    ]


contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda t: "<|" not in t)
chats = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), contents), min_size=1, max_size=5).map(
    lambda rows: [{"role": role, "content": content} for role, content in rows]
)


@given(st.lists(chats, max_size=4))
def test_tokens_equal_the_rendered_text_and_the_mask_is_the_assistants(tokenizer: Tokenizer, many: list) -> None:
    encoded = encode_chats(tokenizer, many)
    assert len(encoded) == len(many)
    for chat, (tokens, mask) in zip(many, encoded, strict=True):
        assert tokens.tolist() == tokenizer.encode(tokenizer.chat_text(chat), specials=True)
        said = "".join(m["content"].strip() + "<|im_end|>" for m in chat if m["role"] == "assistant")
        assert tokenizer.decode(tokens[mask == 1].tolist(), specials=True) == said


def test_a_rendered_sample_shows_the_mask(tokenizer: Tokenizer) -> None:
    tokens, mask = encode_chat(tokenizer, [*EXCHANGE, {"role": "user", "content": "Thanks"}])
    shown = "".join(
        f"[{tokenizer.decode([t], specials=True)}]" if m else tokenizer.decode([t], specials=True)
        for t, m in zip(tokens.tolist(), mask.tolist(), strict=True)
    )
    assert shown.replace("][", "") == (
        "<|im_start|>user\nHow far is it?<|im_end|>\n"
        "<|im_start|>assistant\n[Two days.<|im_end|>]\n"
        "<|im_start|>user\nThanks<|im_end|>\n"
    )


def foreign(tokenizer: Tokenizer, folder: Path, template: str) -> Tokenizer:
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(template)
    return Tokenizer.load(folder)


def test_a_foreign_template_gives_the_same_mask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    default = "<|im_start|>system\nBe kind.<|im_end|>\n"
    template = (
        "{% if messages[0]['role'] != 'system' %}" + default.replace("\n", "{{ '\\n' }}") + "{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{{ m.content }}<|im_end|>"
        "{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
    )
    other = foreign(tokenizer, tmp_path, template)
    assert not other.is_chatml
    tokens, mask = encode_chat(other, EXCHANGE)
    plain, plain_mask = encode_chat(tokenizer, [{"role": "system", "content": "Be kind."}, *EXCHANGE])
    assert np.array_equal(tokens, plain)
    assert np.array_equal(mask, plain_mask)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = foreign(tokenizer, tmp_path, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="only appends"):
        encode_chat(other, [*EXCHANGE, *EXCHANGE])


def test_bytes_are_those_of_the_contents() -> None:
    assert content_bytes([{"role": "user", "content": " é "}, {"role": "assistant", "content": "ab\n"}]) == 4
