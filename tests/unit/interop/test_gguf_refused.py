"""A GGUF file that is damaged, or that holds what is not computed here, is refused by the name of what is wrong."""

import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from interop_helpers import small

from moesaic.errors import ModelError
from moesaic.interop.gguf_read import GGUFFile, load_gguf
from moesaic.interop.gguf_write import write_gguf

UP = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def file(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    changes = {"attention_bias": True, "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_context": 8192}}
    write_gguf(small(**changes), path, tokenizer_folder, [2, 0])
    return path


def rewritten(
    source: Path, target: Path, keys: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> Path:
    """The same file with other metadata and tensors; None leaves one out."""
    reader, keys, tensors = GGUFReader(source), keys or {}, tensors or {}
    writer = GGUFWriter(target, keys.get("general.architecture", "llama"))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture" and field.name not in keys:
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None and key != "general.architecture":
            add.get(type(value), writer.add_array)(key, value)
    for tensor in reader.tensors:
        if tensor.name not in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, value in tensors.items():
        if isinstance(value, tuple):  # raw bytes of a quantisation
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        elif value is not None:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_gguf(GGUFFile(path))
    text = str(error.value)
    assert path.name in text
    assert len(text.splitlines()) <= 2
    return text


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "gemma3"}, "architecture 'gemma3' is not read from GGUF; llama, qwen3"),
    ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window = 8 is not computed here"),
    ({"llama.rope.scaling.yarn_log_multiplier": 0.5}, "yarn_log_multiplier = 0.5 is not computed here"),
    ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count = 4 is not computed, only 8 is"),
    ({"llama.attention.value_length": 4}, "llama.attention.value_length = 4 is not computed, only 8 is"),
    ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count = [4, 4]: one number for all layers"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count = 0"),
    ({"llama.attention.head_count_kv": 3}, "n_kv_heads = 3"),
    ({"llama.block_count": None}, "no llama.block_count in its metadata"),
    ({"llama.block_count": 3}, "tensor 'blk.2.attn_norm.weight' is missing"),
    ({"llama.block_count": 2**31}, "tensor 'blk.2.attn_norm.weight' is missing"),
    ({"llama.block_count": 1}, "tensor 'blk.1.attn_k.bias' has no place"),
    ({"llama.feed_forward_length": 48}, "tensor 'blk.0.ffn_gate.weight' is [32, 32], the config asks for [48, 32]"),
    (
        {"llama.feed_forward_length": 2**31},
        "tensor 'blk.0.ffn_gate.weight' is [32, 32], the config asks for [2147483648",
    ),
    ({"llama.expert_count": 4, "llama.expert_used_count": 2}, "'blk.0.ffn_gate_inp.weight' is missing"),
]
TENSORS: list[tuple[dict[str, Any], str]] = [
    ({UP: None}, f"tensor '{UP}' is missing"),
    ({"blk.1.attn_sinks.weight": zeros(4)}, "tensor 'blk.1.attn_sinks.weight' has no place"),
    ({UP: zeros(32, 31)}, f"tensor '{UP}' is [32, 31], the config asks for [32, 32]"),
    ({UP: np.full((32, 32), np.nan, np.float32)}, f"tensor '{UP}' holds NaN or infinity"),
    ({"output_norm.weight": np.full(32, np.inf, np.float32)}, "tensor 'output_norm.weight' holds NaN or infinity"),
    ({"rope_freqs.weight": np.linspace(1, 3, 4, dtype=np.float32)}, "'rope_freqs.weight' is not the scaling of Llama"),
    ({"rope_freqs.weight": zeros(6)}, "'rope_freqs.weight' is not the scaling of Llama"),
    ({UP: np.zeros((32, 32), np.int32)}, f"tensor '{UP}'"),
]


@pytest.mark.parametrize(("keys", "message"), KEYS, ids=lambda x: str(x)[:40])
def test_metadata_that_cannot_be_honoured(keys: dict[str, Any], message: str, file: Path, tmp_path: Path) -> None:
    assert message in refusal(rewritten(file, tmp_path / "bad.gguf", keys=keys))


@pytest.mark.parametrize(("tensors", "message"), TENSORS, ids=lambda x: str(x)[:40])
def test_tensors_that_do_not_fit(tensors: dict[str, Any], message: str, file: Path, tmp_path: Path) -> None:
    assert message in refusal(rewritten(file, tmp_path / "bad.gguf", tensors=tensors))


@pytest.mark.parametrize("scaling", ["longrope", "su"])
def test_unknown_rotary_scaling(scaling: str, file: Path, tmp_path: Path) -> None:
    keys, tensors = {"llama.rope.scaling.type": scaling}, {"rope_freqs.weight": None}
    message = refusal(rewritten(file, tmp_path / "bad.gguf", keys=keys, tensors=tensors))
    assert f"rope.scaling.type = '{scaling}' is not read from GGUF" in message


def test_a_factor_of_nothing_is_no_traceback(file: Path, tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}
    assert "factor" in refusal(rewritten(file, tmp_path / "bad.gguf", keys=keys, tensors={"rope_freqs.weight": None}))


def kind_at(content: bytes, name: str) -> int:
    """Where the quantisation of a tensor is written: after its name, number of dimensions and dimensions."""
    after = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (dimensions,) = struct.unpack_from("<I", content, after)
    return after + 4 + 8 * int(dimensions)


def test_a_quantisation_that_the_library_does_not_know(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, kind_at(content, UP), 999)
    (tmp_path / "bad.gguf").write_bytes(content)
    message = refusal(tmp_path / "bad.gguf")
    assert f"tensor '{UP}': quantisation number 999 is unknown" in message
    assert "use a file in another quantisation" in message


def test_a_quantisation_that_the_library_cannot_undo(file: Path, tmp_path: Path) -> None:
    packed = (np.zeros((32, 32), np.uint8), GGMLQuantizationType.I8)
    message = refusal(rewritten(file, tmp_path / "bad.gguf", tensors={UP: packed}))
    assert f"tensor '{UP}'" in message
    assert "use a file in another quantisation" in message


def test_a_row_that_is_no_whole_number_of_blocks(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, kind_at(content, UP), int(GGMLQuantizationType.Q4_K))  # blocks of 256
    (tmp_path / "bad.gguf").write_bytes(content)
    assert f"'{UP}' is there twice or no multiple of 256 wide" in refusal(tmp_path / "bad.gguf")


def test_truncated_in_a_tensor_names_that_tensor(file: Path, tmp_path: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "cut.gguf"
    for name, info in GGUFFile(file).tensors.items():
        path.write_bytes(content[: info.offset + info.bytes // 2])
        assert f"is truncated: tensor '{name}' ends at byte {info.offset + info.bytes:,}" in refusal(path)


def test_truncated_in_the_header_is_never_read(file: Path, tmp_path: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "cut.gguf"
    end = min(info.offset for info in GGUFFile(file).tensors.values())
    for size in [*range(0, 200), *range(200, end, 997), *range(end - 100, end)]:
        path.write_bytes(content[:size])
        assert re.search("header is cut|is truncated", refusal(path)), size


def test_a_damaged_header_is_no_traceback(file: Path, tmp_path: Path) -> None:
    """Bytes of metadata and tensor places changed at random: read, or refused."""
    draw, content, path = random.Random(0), file.read_bytes(), tmp_path / "bad.gguf"
    end = min(info.offset for info in GGUFFile(file).tensors.values())
    refusals = []
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.choice((draw.randrange(900), end - 1 - draw.randrange(1600)))] = draw.choice((0, 1, 255))
        path.write_bytes(damaged)
        try:
            load_gguf(GGUFFile(path))
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert max(len(text.splitlines()) for text in refusals) <= 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 100, b"\x00" * 4096, b"{}"], ids=repr)
def test_what_is_not_gguf_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content[:4096])
    assert "is not a GGUF file" in refusal(tmp_path / "x.gguf")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "give a .gguf file" in refusal(tmp_path / "none.gguf")


WRITTEN: list[tuple[dict[str, Any], str]] = [
    ({"window": 8}, "window = 8: llama.cpp's llama has no sliding window"),
    ({"rope_scaling": {"kind": "dynamic", "factor": 2, "original_context": 64}}, "of kind 'dynamic'"),
    ({"rope_scaling": {"kind": "yarn", "factor": 2, "original_context": 64, "beta_fast": 8}}, "of kind 'yarn'"),
    (
        {"rope_scaling": {"kind": "yarn", "factor": 2, "original_context": 64, "attention_factor": 1.5}},
        "of kind 'yarn'",
    ),
    ({"n_experts": 4, "top_k": 2, "norm_top_k": False}, "norm_top_k = False"),
    ({"qk_norm": "all"}, "qk_norm = all"),
    ({"n_experts": 4, "qk_norm": "head", "norm_top_k": False}, "qk_norm = head, norm_top_k = False"),
    ({"n_experts": 4, "dense_layers": (0,)}, "dense_layers"),
    ({"dense_layers": (0,), "dense_d_ff": 40}, "dense_layers"),
    ({"clip_qkv": 4.0}, "clip_qkv = 4.0"),
    ({"qk_norm": "head", "attention_bias": True}, "biases are not computed by llama.cpp's qwen3"),
    (
        {"qk_norm": "head", "rope_scaling": {"kind": "llama3", "factor": 8, "original_context": 8192}},
        "'llama3' is not computed by llama.cpp's qwen3",
    ),
    ({"n_experts": 4, "qk_norm": "all", "norm_top_k": False, "n_kv_heads": 4}, "olmoe wants"),
    ({"n_experts": 4, "qk_norm": "all", "norm_top_k": False, "tie_embeddings": False}, "olmoe wants"),
]


@pytest.mark.parametrize(("changes", "message"), WRITTEN, ids=lambda x: str(x)[:60])
def test_what_llama_cpp_does_not_compute_is_not_written(
    changes: dict[str, Any], message: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        write_gguf(small(**changes), tmp_path / "m.gguf", tokenizer_folder, [])
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_fp16_and_a_full_disk_leave_the_old_file(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"old")
    model = small()
    model.layers[1].attention.wo.data[3, 4] = 1e5
    with pytest.raises(ModelError, match=r"'blk.1.attn_output.weight' has values that fp16 cannot hold"):
        write_gguf(model, tmp_path / "m.gguf", tokenizer_folder, [], torch.float16)
    with pytest.raises(ModelError, match=r"not torch\.float64; use --dtype float32"):
        write_gguf(model, tmp_path / "m.gguf", tokenizer_folder, [], torch.float64)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ModelError, match="No space left on device; free some space"):
        write_gguf(model, tmp_path / "m.gguf", tokenizer_folder, [])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.gguf", b"old")]
