"""Conversations: four row formats in, tokens with a loss mask out.

Rows become OpenAI messages; messages become ids piece by piece, all contents of a batch in one tokenizer
call. Learned tokens are the assistant's content and the end-of-turn token after it, nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesaic.data.tokenizer import Messages, Tokenizer
from moesaic.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
Message = dict[str, str]
Encoded = tuple[NDArray[np.int32], NDArray[np.uint8]]


def row_format(row: Mapping[str, Any]) -> str | None:
    """Name of the chat format that a row's keys show, or None."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and ("output" in row or "response" in row):
        return "alpaca"
    if "question" in row and "answer" in row:
        return "question"
    return None


def read_row(row: Mapping[str, Any], form: str) -> list[Message]:
    """Messages of a row in the format `form`: messages (OpenAI), sharegpt, alpaca, or question (question,
    answer).

    Raises ValueError, KeyError or TypeError on a row of another shape; the caller knows file and line.
    """
    if form == "messages":
        return [{"role": ROLES[m["role"]], "content": _text(m.get("content"))} for m in row["messages"]]
    if form == "sharegpt":
        return [{"role": ROLES[m["from"]], "content": _text(m["value"])} for m in row["conversations"]]
    if form == "alpaca":
        prompt, more = _text(row["instruction"]), _text(row.get("input"))
        answer = _text(row["output"] if "output" in row else row["response"])
        return _exchange(f"{prompt}\n\n{more}" if more else prompt, answer)
    if form == "question":
        return _exchange(_text(row["question"]), _text(row["answer"]))
    raise ValueError(f"no chat format {form!r}")


def read_chitchat(conversations: Mapping[str, Any]) -> Iterator[tuple[str, list[Message]]]:
    """(id, messages) of each dialogue in the `chitchat-dataset` file.

    Two people talk; the first to speak becomes the user, the other the assistant. What one person sends in a
    row is one turn, a line each. Monologues (nobody answered) and visits of a single word are left out.
    """
    for key, conversation in conversations.items():
        roles: dict[str, str] = {}
        messages: list[Message] = []
        for turn in conversation["messages"]:
            for line in turn:
                text = line["text"].strip()
                if not text:
                    continue
                role = roles.setdefault(line["sender"], "assistant" if roles else "user")
                if messages and messages[-1]["role"] == role:
                    messages[-1]["content"] += "\n" + text
                else:
                    messages.append({"role": role, "content": text})
        if len(messages) >= 2:
            yield key, messages


def encode_flat(
    tokenizer: Tokenizer, chats: Sequence[Messages]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], list[int]]:
    """Tokens and loss mask of all conversations end to end, and the length of each in tokens.

    Exactly what the chat template renders. Raises DataError when a foreign template cannot be split into
    turns.
    """
    if not tokenizer.is_chatml:
        pairs = [_encode_foreign(tokenizer, messages) for messages in chats]
        ids = [i for part, _ in pairs for i in part]
        mask = [m for _, part in pairs for m in part]
        return np.array(ids, np.int32), np.array(mask, np.uint8), [len(part) for part, _ in pairs]
    contents = iter(tokenizer.encode_batch([m["content"].strip() for messages in chats for m in messages]))
    footer = tokenizer.turn_footer
    headers = {role: tokenizer.turn_header(role) for role in {m["role"] for messages in chats for m in messages}}
    ids, lengths = [], []
    runs: list[int] = []  # lengths of what is not learned and what is, in turns: one np.repeat makes the whole mask
    for messages in chats:
        start = len(ids)
        for message in messages:
            header, content = headers[message["role"]], next(contents)
            ids += header
            ids += content
            ids += footer
            learned = len(content) + 1 if message["role"] == "assistant" else 0  # its end of turn is learned too
            runs += (len(header), learned, len(content) + len(footer) - learned, 0)
        lengths.append(len(ids) - start)
    mask_runs = np.tile(np.array([0, 1], np.uint8), len(runs) // 2)
    return np.array(ids, np.int32), np.repeat(mask_runs, runs), lengths


def encode_chats(tokenizer: Tokenizer, chats: Sequence[Messages]) -> list[Encoded]:
    """(tokens int32 [n], loss mask uint8 [n]) of each conversation. Raises DataError as `encode_flat`."""
    ids, mask, lengths = encode_flat(tokenizer, chats)
    cuts = np.cumsum(lengths)[:-1]
    return list(zip(np.split(ids, cuts), np.split(mask, cuts), strict=True)) if lengths else []


def encode_chat(tokenizer: Tokenizer, messages: Messages) -> Encoded:
    """`encode_chats` of one conversation."""
    return encode_chats(tokenizer, [messages])[0]


def content_bytes(messages: Messages) -> int:
    """UTF-8 bytes of the (trimmed) contents: what bits per byte of a dialogue are counted over. Roles count
    nothing."""
    return sum(len(m["content"].strip().encode()) for m in messages)


def _encode_foreign(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[int]]:
    """By rendering twice around each assistant turn: slow, but right for any template that only appends."""
    whole = tokenizer.chat_text(messages)
    ids: list[int] = []
    mask: list[int] = []
    done = 0

    def take(end: int, learned: int) -> None:
        nonlocal done
        piece = tokenizer.encode(whole[done:end], specials=True)
        ids.extend(piece)
        mask.extend([learned] * len(piece))
        done = end

    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.chat_text(messages[:i], add_generation_prompt=True)
        after = tokenizer.chat_text(messages[: i + 1])
        if not (whole.startswith(before) and whole.startswith(after)):
            raise DataError("the chat template rewrites earlier turns; the loss mask needs one that only appends")
        take(len(before), 0)
        end = whole.find(tokenizer.end_of_turn, len(before), len(after))
        take(len(after) if end < 0 else end + len(tokenizer.end_of_turn), 1)
    take(len(whole), 0)
    return ids, mask


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _text(content: Any) -> str:
    """Text of a content: a string, nothing, or OpenAI's list of parts (text parts only)."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    raise TypeError(f"a message's content is {type(content).__name__}, not text")
