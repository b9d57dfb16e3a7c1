"""A byte-level BPE tokenizer <-> the tokenizer section of a GGUF file.

llama.cpp has no pre-tokenizer expressions in the file, only the name of one that it knows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from moesaic.errors import ModelError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _LETTERS % r"\p{N}{1,3}"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _LETTERS % r"\p{N}"


def _byte_level(regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _byte_level(False)])


def known_pre_tokenizers() -> dict[str, pre_tokenizers.PreTokenizer]:
    """By llama.cpp's name; the first of equal ones is written."""
    return {
        "gpt-2": _byte_level(True),
        "olmo": _byte_level(True),
        "default": _byte_level(True),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(True)]),
        "llama-bpe": _split(_LLAMA3),
        "qwen2": _split(_QWEN2),
    }


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, where: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF's tokenizer into `folder`.

    `where` names the file in the ModelError for a kind that is not read.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in known_pre_tokenizers():
        raise ModelError(
            f"{where}: its tokenizer ({kind}, {pre}) is not read from GGUF, byte-level BPE of gpt-2, smollm, llama-bpe "
            "and qwen2 is; import the model's Hugging Face folder"
        )
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    if wrong := [f"{name}_token_id = {i}" for name, i in ids.items() if i is not None and i >= len(tokens)]:
        raise ModelError(f"{where}: tokenizer.ggml.{wrong[0]}, but it has {len(tokens)} tokens; copy it again")
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    try:
        core = _byte_level_bpe(tokens, types, metadata.get("tokenizer.ggml.merges", ()), pre)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"{where}: its vocabulary and merges do not fit each other ({error}); copy it again"
        ) from error
    begin = ids["bos"]
    # llama.cpp puts it first for this kind unless the file says otherwise.
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and begin is not None:
        bos = tokens[begin]
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, begin)])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        if (found := ids[name]) is not None:
            config[key] = tokens[found]
    core.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", config)
    if stops := [i for i in (ids["eot"], ids["eom"], ids["eos"]) if i is not None]:
        _write_json(folder / "generation_config.json", {"eos_token_id": list(dict.fromkeys(stops))})
    if template := metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level_bpe(tokens: list[str], types: list[int], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [(first, second) for first, second in (m.split(" ", 1) for m in merges)]
    core = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    core.pre_tokenizer = known_pre_tokenizers()[pre]
    core.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()
    core.add_tokens(
        [
            AddedToken(token, special=kind_of == CONTROL, normalized=False)
            for token, kind_of in zip(tokens, types, strict=True)
            if kind_of in (CONTROL, USER_DEFINED)
        ]
    )
    return core


def tokenizer_metadata(folder: Path, vocab_size: int, stop_ids: list[int]) -> dict[str, Any]:
    """The tokenizer section for the tokenizer in `folder`; values without the `tokenizer.` prefix.

    Raises ModelError for a tokenizer that llama.cpp does not know.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"no tokenizer.json in {folder}; copy it there, a GGUF file carries its tokenizer")
    core = tokenizers.Tokenizer.from_file(str(file))
    tree = json.loads(core.to_str())
    if tree["model"]["type"] != "BPE" or tree["pre_tokenizer"] is None:
        raise ModelError(
            f"{file}: GGUF files are written for byte-level BPE; this is of SentencePiece's kind "
            f"({tree['model']['type']}): export it as a Hugging Face folder"
        )
    if (normalizer := tree["normalizer"]) is not None and normalizer["type"] != "NFC":
        raise ModelError(
            f"{file}: llama.cpp has no {normalizer['type']} normaliser; export it as a Hugging Face folder"
        )
    if len(core.get_vocab()) > vocab_size:
        raise ModelError(f"{file} has {len(core.get_vocab())} tokens, the model {vocab_size} embeddings; copy its own")
    names = [name for name, pre in known_pre_tokenizers().items() if _same(tree["pre_tokenizer"], pre)]
    if not names:
        raise ModelError(
            f"{file}: llama.cpp knows no pre-tokenizer like its own; export works for gpt-2's and smollm's"
        )
    added = {token["id"]: token for token in tree["added_tokens"]}
    by_id = {i: token for token, i in core.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [
        UNUSED if i not in by_id else NORMAL if i not in added else CONTROL if added[i]["special"] else USER_DEFINED
        for i in range(vocab_size)
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]]
    config = json.loads((folder / "tokenizer_config.json").read_text()) if _is(folder, "tokenizer_config.json") else {}
    prefix = core.encode("").ids
    out: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.pre": names[0],
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": merges,
        "ggml.add_bos_token": bool(prefix),
    }
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        text = config.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        if text is not None and (found := core.token_to_id(text)) is not None:
            out[f"ggml.{key}_token_id"] = found
    if stop_ids:
        out["ggml.eot_token_id"] = stop_ids[0]
    if _is(folder, "chat_template.jinja"):
        out["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif isinstance(config.get("chat_template"), str):
        out["chat_template"] = config["chat_template"]
    return out


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _is(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _same(tree: Mapping[str, Any], known: pre_tokenizers.PreTokenizer) -> bool:
    """Whether two pre-tokenizers cut alike: offsets of characters do not matter."""
    probe = tokenizers.Tokenizer(models.BPE())
    probe.pre_tokenizer = known
    return bool(_bare(tree) == _bare(json.loads(probe.to_str())["pre_tokenizer"]))


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _bare(v) for k, v in value.items() if k not in ("trim_offsets", "invert")}
    return [_bare(v) for v in value] if isinstance(value, list) else value
