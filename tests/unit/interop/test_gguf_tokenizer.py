"""The tokenizer inside a GGUF file: ours survives the way out and back, the known kinds cut as their models do."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from moesaic.data import Tokenizer
from moesaic.errors import ModelError
from moesaic.interop import stop_ids_of
from moesaic.interop.gguf_tokenizer import known_pre_tokenizers, tokenizer_metadata, write_tokenizer

WHERE = Path("some.gguf")
TEXTS = [
    "",
    " ",
    "hello there",
    "In 1984 there were 12,345 of them: 3.14159",
    "tabs\tand  runs   of    spaces \n\n\n  end ",
    "Grüße, naïve café, 東京, привет, 🦊🌲, e\u0301",
    "def f(x):\n    return x + 1  # it's\r\n\tI'LL we've",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "a\u00a0b\u2028c\x00d",
]


def through_gguf(folder: Path, out: Path, vocab_size: int = 300, **changes: Any) -> Path:
    """The tokenizer of `folder` as metadata of a file and back."""
    metadata = tokenizer_metadata(folder, vocab_size, stop_ids_of(folder))
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer({f"tokenizer.{k}": v for k, v in metadata.items()} | changes, out, WHERE)
    return out


def file_metadata(**changes: Any) -> dict[str, Any]:
    """A file with the 256 bytes, three merges and three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["11", "th", "the"]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*alphabet, *merged, "<s>", "</s>", "<|eot_id|>", "<|tool|>"],
        "merges": ["1 1", "t h", "th e"],
        "token_type": [1] * (256 + 3) + [3, 3, 3, 4],
        "bos_token_id": 259,
        "eos_token_id": 260,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in (values | changes).items() if v is not None}


def read(folder: Path, **changes: Any) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    write_tokenizer(file_metadata(**changes), folder, WHERE)
    return Tokenizer.load(folder)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.fixture(scope="module")
def again(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(through_gguf(tokenizer_folder, tmp_path_factory.mktemp("again")))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("specials", [False, True])
def test_ours_encodes_the_same_after_the_way_through_a_file(
    text: str, specials: bool, tokenizer: Tokenizer, again: Tokenizer
) -> None:
    ids = tokenizer.encode(text, specials=specials)
    assert again.encode(text, specials=specials) == ids
    assert again.decode(ids, specials=True) == tokenizer.decode(ids, specials=True) == text
    assert again.decode(ids) == tokenizer.decode(ids)


@settings(max_examples=200)
@given(text=st.text(max_size=60))
def test_any_text_encodes_the_same(text: str, tokenizer: Tokenizer, again: Tokenizer) -> None:
    assert again.encode(text) == tokenizer.encode(text)
    assert again.encode_batch([text]) == [tokenizer.encode(text)]


def test_stop_ids_template_and_size_come_along(tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = through_gguf(tokenizer_folder, tmp_path / "t")
    again = Tokenizer.load(folder)
    assert stop_ids_of(folder) == stop_ids_of(tokenizer_folder) == list(tokenizer.stop_ids)
    assert again.stop_ids == tokenizer.stop_ids
    assert again.chat_template == tokenizer.chat_template
    assert len(again) == len(tokenizer)
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    assert again.render_chat(messages) == tokenizer.render_chat(messages)
    assert again.prefix_ids == tokenizer.prefix_ids == []


def test_embeddings_without_a_token_are_marked_unused(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    metadata = tokenizer_metadata(tokenizer_folder, 310, [])
    assert metadata["ggml.tokens"][300:] == [f"[PAD{i}]" for i in range(300, 310)]
    assert metadata["ggml.token_type"][300:] == [5] * 10
    assert metadata["ggml.token_type"][:4] == [3] * 4
    assert metadata["ggml.token_type"][4] == 1
    again = Tokenizer.load(through_gguf(tokenizer_folder, tmp_path / "t", 310))
    assert again.encode("hello [PAD300]") == tokenizer.encode("hello [PAD300]")


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "the 1111", ["the", " ", "11", "11"]),
        ("default", "the 1111", ["the", " ", "11", "11"]),
        ("olmo", "the 1111", ["the", " ", "11", "11"]),
        ("smollm", "the 1111", ["the", " ", "1", "1", "1", "1"]),  # digits stand alone
        ("llama-bpe", "the 1111", ["the", " ", "11", "1", "1"]),  # at most three digits together
        ("qwen2", "the 1111", ["the", " ", "1", "1", "1", "1"]),
    ],
)
def test_pre_tokenizers_cut_as_their_models_do(pre: str, text: str, expected: list[str], tmp_path: Path) -> None:
    assert pieces(read(tmp_path, pre=pre), text) == expected


def test_qwen_composes_characters_and_others_do_not(tmp_path: Path) -> None:
    decomposed, composed = "e\u0301", "\u00e9"
    qwen, llama = read(tmp_path / "q", pre="qwen2"), read(tmp_path / "l", pre="llama-bpe")
    assert qwen.encode(decomposed) == qwen.encode(composed)
    assert llama.encode(decomposed) != llama.encode(composed)


def test_llama_takes_whole_words_of_its_vocabulary_before_merging(tmp_path: Path) -> None:
    tokens = [*file_metadata()["tokenizer.ggml.tokens"], "xyz"]  # no merges lead to it
    types = [*file_metadata()["tokenizer.ggml.token_type"], 1]
    assert pieces(read(tmp_path / "l", pre="llama-bpe", tokens=tokens, token_type=types), "xyz") == ["xyz"]
    assert pieces(read(tmp_path / "g", pre="gpt-2", tokens=tokens, token_type=types), "xyz") == ["x", "y", "z"]


def test_begin_of_text_stands_first_when_the_file_says_so(tmp_path: Path) -> None:
    assert read(tmp_path / "a", add_bos_token=True).prefix_ids == [259]
    assert read(tmp_path / "b", add_bos_token=False).prefix_ids == []
    assert read(tmp_path / "c").prefix_ids == []
    again = through_gguf(tmp_path / "a", tmp_path / "d", 263)
    assert Tokenizer.load(again).prefix_ids == [259]


def test_control_tokens_count_only_where_they_are_meant(tmp_path: Path) -> None:
    tokenizer = read(tmp_path)
    assert tokenizer.encode("<|eot_id|>", specials=True) == [261]
    assert len(tokenizer.encode("<|eot_id|>")) > 1
    assert tokenizer.decode([261]) == ""
    assert tokenizer.decode([262]) == "<|tool|>"  # the user's own, visible in text


def test_all_ends_that_the_file_names_stop_an_answer(tmp_path: Path) -> None:
    read(tmp_path, eot_token_id=261)
    assert sorted(stop_ids_of(tmp_path)) == [260, 261]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama", "pre": None}, "its tokenizer (llama, default) is not read from GGUF"),
        ({"model": "bert"}, "its tokenizer (bert, gpt-2) is not read from GGUF"),
        ({"pre": "deepseek-llm"}, "its tokenizer (gpt2, deepseek-llm) is not read"),
        ({"model": None}, "its tokenizer (None, gpt-2) is not read"),
        ({"merges": ["1 1", "q zz"]}, "vocabulary and merges do not fit each other"),
        ({"merges": ["11"]}, "vocabulary and merges do not fit each other"),
        ({"token_type": [1, 1]}, "vocabulary and merges do not fit each other"),
        ({"tokens": None, "bos_token_id": None, "eos_token_id": None}, "do not fit each other"),
        ({"eos_token_id": 5000}, "tokenizer.ggml.eos_token_id = 5000, but it has 263 tokens"),
    ],
    ids=str,
)
def test_tokenizers_that_are_not_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        write_tokenizer(file_metadata(**changes), tmp_path, WHERE)
    assert message in str(error.value)
    assert str(error.value).startswith("some.gguf: ")
    assert list(tmp_path.iterdir()) == []


def edited(folder: Path, out: Path, edit: Any) -> Path:
    """A copy of a tokenizer's folder after `edit(core)`."""
    out.mkdir()
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit(core)
    core.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    return out


def refused(folder: Path, vocab_size: int = 300) -> str:
    with pytest.raises(ModelError) as error:
        tokenizer_metadata(folder, vocab_size, [])
    return str(error.value)


def test_tokenizers_that_llama_cpp_does_not_know_are_not_written(tokenizer_folder: Path, tmp_path: Path) -> None:
    def lower(core: Any) -> None:
        core.normalizer = normalizers.Lowercase()

    def split(core: Any) -> None:
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    assert "no Lowercase normaliser" in refused(edited(tokenizer_folder, tmp_path / "a", lower))
    assert "knows no pre-tokenizer like its own" in refused(edited(tokenizer_folder, tmp_path / "b", split))
    assert "has 300 tokens, the model 299 embeddings" in refused(tokenizer_folder, 299)
    (tmp_path / "c").mkdir()
    assert "no tokenizer.json" in refused(tmp_path / "c")
    unigram = tokenizers.Tokenizer(models.Unigram([("a", 0.0)], 0))
    unigram.save(str(tmp_path / "c/tokenizer.json"))
    assert "SentencePiece's kind (Unigram)" in refused(tmp_path / "c")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_each_known_kind_keeps_its_name(name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    def as_they_publish_it(core: Any) -> None:
        core.pre_tokenizer = known_pre_tokenizers()[name]
        core.add_special_tokens([AddedToken("<|endoftext|>")])

    folder = edited(tokenizer_folder, tmp_path / "t", as_they_publish_it)
    tree = json.loads((folder / "tokenizer.json").read_text())
    for part in (tree["pre_tokenizer"], *tree["pre_tokenizer"].get("pretokenizers", ())):
        part.update({"trim_offsets": False} if part["type"] == "ByteLevel" else {})  # offsets change no ids
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    assert tokenizer_metadata(folder, 300, [])["ggml.pre"] == name
