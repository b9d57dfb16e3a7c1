"""Exporting: the other program's file holds the same model, or nothing is written and the reason is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from interop_helpers import assert_same_weights, small, state_of, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moesaic.errors import ModelError
from moesaic.interop import load_model, save_model
from moesaic.interop.export import export_model
from moesaic.interop.gguf_read import GGUFFile, load_gguf


def give(folder: Path, to: Any, out: Path, **options: Any) -> list[str]:
    """Export; what was said."""
    said: list[str] = []
    export_model(folder, to, out, say=said.append, **options)
    return said


@pytest.mark.parametrize("changes", [{}, {"n_experts": 4, "top_k": 2}, {"qk_norm": "head"}], ids=str)
def test_both_kinds_hold_the_model(changes: dict[str, Any], tokenizer_folder: Path, tmp_path: Path) -> None:
    model = small(**changes)
    save_model(model, tmp_path / "m", tokenizer_folder=tokenizer_folder)
    assert give(tmp_path / "m", "hf", tmp_path / "hf") == []
    assert give(tmp_path / "m", "gguf", tmp_path / "new/m.gguf") == []
    assert_same_weights(load_gguf(GGUFFile(tmp_path / "new/m.gguf")), model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=0, atol=1e-4)
    found = json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"]
    assert found == json.loads((tmp_path / "m/generation_config.json").read_text())["eos_token_id"]


def test_types_are_kept_unless_others_are_asked_for(dense_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(dense_folder / "model.safetensors")
    narrow = {n: t.bfloat16() for n, t in tensors.items()}
    save_file(narrow, dense_folder / "model.safetensors")
    give(dense_folder, "gguf", tmp_path / "m.gguf")
    kinds = {n: i.kind.name for n, i in GGUFFile(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    give(dense_folder, "gguf", tmp_path / "m.gguf", dtype=torch.float32)
    assert {i.kind.name for i in GGUFFile(tmp_path / "m.gguf").tensors.values()} == {"F32"}
    save_file(narrow | {"model.norm.weight": tensors["model.norm.weight"]}, dense_folder / "model.safetensors")
    give(dense_folder, "hf", tmp_path / "hf")  # one wide tensor: none loses digits
    assert_same_weights(load_model(tmp_path / "hf"), load_model(dense_folder, dtype=torch.float32))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "hf",
        {"rope_scaling": {"kind": "dynamic", "factor": 2, "original_context": 32}},
        "no architecture of transformers",
    ),
    ("hf", {"qk_norm": "head", "mlp_bias": True}, "no architecture of transformers"),
    ("hf", {"n_experts": 4, "top_k": 2, "norm_top_k": False, "window": 8, "clip_qkv": 3.0}, "no architecture of trans"),
    ("gguf", {"window": 8}, "window = 8"),
    ("gguf", {"rope_scaling": {"kind": "dynamic", "factor": 2, "original_context": 64}}, "of kind 'dynamic'"),
    ("gguf", {"clip_qkv": 4.0}, "clip_qkv = 4.0"),
    ("gguf", {"n_experts": 4, "top_k": 2, "norm_top_k": False}, "norm_top_k = False"),
]


@pytest.mark.parametrize(("to", "changes", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_others_cannot_compute_is_refused_and_nothing_is_left(
    to: str, changes: dict[str, Any], message: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_model(small(**changes), tmp_path / "m", tokenizer_folder=tokenizer_folder)
    state = state_of(tmp_path)
    with pytest.raises(ModelError) as error:
        give(tmp_path / "m", to, tmp_path / "out")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert state_of(tmp_path) == state


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_place_that_is_taken_is_refused(to: str, dense_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mother.txt").write_text("dear")
    state = state_of(tmp_path)
    with pytest.raises(ModelError, match="is the model itself; choose another place"):
        give(dense_folder, to, dense_folder)
    with pytest.raises(ModelError, match=r"letters (holds files that are not a model|is a folder)"):
        give(dense_folder, to, tmp_path / "letters")
    assert state_of(tmp_path) == state


def test_a_vision_part_stays_behind_and_is_mentioned(dense_folder: Path, tmp_path: Path) -> None:
    (dense_folder / "vision.safetensors").write_bytes(b"")
    assert give(dense_folder, "hf", tmp_path / "out") == [
        "the vision part stays behind: only the text trunk is exported"
    ]
    assert not (tmp_path / "out/vision.safetensors").exists()


def test_weights_beyond_fp16_are_refused_by_name(dense_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(dense_folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, dense_folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.up_proj.weight' has values that fp16 cannot hold"):
        give(dense_folder, "hf", tmp_path / "out", dtype=torch.float16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]


def test_a_model_without_a_tokenizer_is_no_gguf(dense_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_folder, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json in"):
        give(tmp_path / "bare", "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
