"""The Python API: text, streams and replies agree, and every mistake is a MoesaicError."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import moesaic
from moesaic.errors import MoesaicError
from moesaic.model import Step
from moesaic.serve.local import LocalModel, find_model

MESSAGES = [{"role": "user", "content": "hello"}]


def test_text_stream_and_reply_agree(local: LocalModel) -> None:
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 40}
    whole = local.generate("hello", **options)
    assert "".join(local.stream("hello", **options)) == whole
    assert local.reply("hello", **options).text == whole
    assert whole


def test_a_chat_is_the_template_and_the_answer_to_it(local: LocalModel) -> None:
    reply = local.chat(MESSAGES, temperature=0, max_tokens=10)
    assert local.tokenizer.decode(local.encode(MESSAGES), specials=True) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reply.tokens <= 10
    assert reply.text == local.generate(MESSAGES, temperature=0, max_tokens=10)


def test_answers_end_at_the_folders_stop_ids(local: LocalModel) -> None:
    end = local.tokenizer.end_of_turn_id
    assert local.stop_ids == (end, local.tokenizer.eos_id)
    first = next(local.steps("hello", temperature=0)).token
    cut = local.reply("hello", temperature=0, stop_ids=(first,))
    assert (cut.text, cut.tokens, cut.finish_reason) == ("", 1, "stop")


def test_an_unfinished_character_is_held_back_and_shown_at_the_end(local: LocalModel) -> None:
    euro = local.tokenizer.encode("a€")
    assert len(euro) > 2

    def steps(ids: list[int]) -> Iterator[Step]:
        yield from (Step(i, "length" if n == len(ids) - 1 else None) for n, i in enumerate(ids))

    assert [t for t, _ in local.decoded(steps(euro)) if t] == ["a", "€"]
    assert "".join(t for t, _ in local.decoded(steps(euro[:-1]))).startswith("a\ufffd")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("word " * 200, {}, "shorten the prompt to at most 127 tokens"),
        ("hello", {"temperature": -1}, "temperature = -1 is out of range"),
        ("hello", {"heat": 1}, "unknown setting 'heat'; known are max_tokens, min_p"),
        ([{"role": "user"}], {}, "a message needs a role and a content"),
        ([{"role": "user", "content": 3}], {}, "a message needs a role and a content"),
    ],
)
def test_mistakes_show_at_the_call_not_in_the_stream(
    local: LocalModel, prompt: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(MoesaicError, match=message):
        local.stream(prompt, **options)  # type: ignore[arg-type]


def test_a_model_is_found_in_its_folder_in_a_run_and_by_the_name_of_a_run(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "runs/first/model")
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first/model", "runs/first", "first"):
        assert find_model(Path(name)) == Path("runs/first/model")
    with pytest.raises(MoesaicError, match=r"no model in second.*a run that has finished"):
        moesaic.load("second")


def test_a_tokenizer_of_another_model_is_noticed(model_folder: Path, tmp_path: Path) -> None:
    from moesaic.data import train_tokenizer

    shutil.copytree(model_folder, tmp_path / "m")
    train_tokenizer(["words and more words"] * 5, 320).save(tmp_path / "m")
    with pytest.raises(MoesaicError, match="the tokenizer has 320 entries, the model 300"):
        moesaic.load(tmp_path / "m")


@pytest.mark.parametrize("ids", [None, 7, [7, 8]])
def test_stop_ids_are_read_in_every_form(model_folder: Path, tmp_path: Path, ids: object) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    opened = moesaic.load(tmp_path / "m")
    assert opened.stop_ids == {None: opened.tokenizer.stop_ids, 7: (7,)}.get(
        ids if not isinstance(ids, list) else 0, (7, 8)
    )
