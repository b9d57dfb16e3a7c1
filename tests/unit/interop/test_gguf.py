"""A GGUF file holds the model: what we write we read bit for bit, and others read the same model in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from interop_helpers import assert_same_weights, computed, shapes, small, tokens
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from moesaic.interop.gguf_layout import to_halves, to_pairs
from moesaic.interop.gguf_read import GGUFFile, load_gguf
from moesaic.interop.gguf_write import write_gguf
from moesaic.model import Transformer
from moesaic.recipe import Model

STOPS = [2, 0]


def written(model: Transformer, folder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32) -> Path:
    path = folder / "m.gguf"
    write_gguf(model, path, tokenizer, STOPS, dtype)
    return path


@settings(max_examples=60)
@given(changes=shapes())
def test_round_trip_is_bit_equal(
    changes: dict[str, Any], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = small(**changes), tmp_path_factory.mktemp("g")
    again = load_gguf(GGUFFile(written(model, folder, tokenizer_folder)))
    assert computed(again.config) == computed(model.config)
    assert_same_weights(again, model)
    with torch.no_grad():
        assert torch.equal(again(tokens()), model(tokens()))
    assert [p.name for p in folder.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("experts", [1, 4])
def test_narrow_storage_is_the_rounding_of_matrices_alone(
    dtype: torch.dtype, experts: int, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = small(n_experts=experts, attention_bias=True)
    again = load_gguf(GGUFFile(written(model, tmp_path, tokenizer_folder, dtype)))
    stored = dict(again.named_parameters())
    for name, values in model.named_parameters():
        whole = values.ndim == 1 or "router" in name
        assert torch.equal(stored[name], values if whole else values.to(dtype).float()), name


def theirs_in(path: Path, shape: Model) -> PreTrainedModel:
    """The model of a GGUF file by transformers' own reader, without the accelerate that `from_pretrained` wants."""
    config = load_gguf_checkpoint(str(path))["config"]
    config |= {"head_dim": shape.head_dim, "moe_intermediate_size": shape.d_ff}  # it overlooks them in a Qwen3
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    missing, unexpected = model.load_state_dict(
        load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"], strict=False
    )
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return model.eval()


@settings(max_examples=15)
@given(changes=shapes(("llama", "qwen3", "qwen3moe")))
def test_transformers_reads_the_same_model_in_the_file(
    changes: dict[str, Any], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The order of query and key rows, told by a program that is not ours. It reads no biases and no scaling."""
    changes |= {"attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    model, folder = small(**changes), tmp_path_factory.mktemp("g")
    theirs = theirs_in(written(model, folder, tokenizer_folder), model.config)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=0, atol=1e-4)


def test_pairs_and_halves_undo_each_other() -> None:
    rows = torch.arange(2 * 6 * 3).view(12, 3)
    assert to_pairs(rows, 2)[:, 0].tolist() == [0, 9, 3, 12, 6, 15, 18, 27, 21, 30, 24, 33]
    assert torch.equal(to_halves(to_pairs(rows, 2), 2), rows)
    assert torch.equal(to_pairs(to_halves(rows, 2), 2), rows)


def requantised(source: Path, target: Path, kind: GGMLQuantizationType) -> dict[str, np.ndarray[Any, Any]]:
    """The same file with its matrices quantised by the gguf library; returns what the library makes of them."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    expected = {}
    for tensor in reader.tensors:
        rows = dequantize(tensor.data, tensor.tensor_type)
        if rows.ndim > 1:
            packed = quantize(rows, kind)
            writer.add_tensor(tensor.name, packed, raw_dtype=kind)
            rows = dequantize(packed, kind)
        else:
            writer.add_tensor(tensor.name, rows)
        expected[tensor.name] = rows
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_tensors_are_what_the_library_makes_of_them(
    kind: str, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesaic.interop.gguf_read.CHUNK_VALUES", 1000)  # several pieces a tensor
    model = small(n_experts=2, top_k=1)
    source = written(model, tmp_path, tokenizer_folder)
    expected = requantised(source, tmp_path / "q.gguf", GGMLQuantizationType[kind])
    read = load_gguf(GGUFFile(tmp_path / "q.gguf"))
    place = read.layers[1].experts
    assert torch.equal(read.embedding, torch.from_numpy(expected["token_embd.weight"]))
    assert torch.equal(place.w_in[:, 1], torch.from_numpy(expected["blk.1.ffn_up_exps.weight"]))
    assert torch.equal(place.w_out, torch.from_numpy(expected["blk.1.ffn_down_exps.weight"]))
    key = torch.from_numpy(expected["blk.0.attn_k.weight"])
    assert torch.equal(read.layers[0].attention.wk, to_halves(key, 2))
    assert not torch.equal(place.w_out, model.layers[1].experts.w_out)
    near = {"Q8_0": 0.01}.get(kind, 0.2)
    torch.testing.assert_close(place.w_out, model.layers[1].experts.w_out, rtol=0, atol=near)


def test_everyone_may_read_the_file(tokenizer_folder: Path, tmp_path: Path) -> None:
    assert written(small(), tmp_path, tokenizer_folder).stat().st_mode & 0o777 == 0o644


def test_metadata_say_what_llama_cpp_asks_for(tokenizer_folder: Path, tmp_path: Path) -> None:
    changes = {"n_experts": 4, "top_k": 2, "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 16}}
    found = GGUFFile(written(small(**changes), tmp_path, tokenizer_folder)).metadata
    assert found["general.architecture"] == "llama"
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.dimension_count"] == found["llama.attention.key_length"] == 8
    assert (found["llama.expert_count"], found["llama.expert_used_count"]) == (4, 2)
    assert found["llama.rope.scaling.type"] == "yarn"
    assert found["llama.rope.scaling.original_context_length"] == 16
    assert found["tokenizer.ggml.eot_token_id"] == STOPS[0]
    assert len(found["tokenizer.ggml.tokens"]) == found["llama.vocab_size"] == 300
