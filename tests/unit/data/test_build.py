"""A build is all or nothing, repeatable, and says what it left out."""

import json
import random
from pathlib import Path

import pytest
from data_helpers import make_recipe, sentence

from moesaic.data import DataFolder, build_data, data_path
from moesaic.data.dedup import NearDuplicates, shingles
from moesaic.data.filters import reason_to_drop
from moesaic.data.sources import Document
from moesaic.errors import DataError
from moesaic.recipe import Data, Recipe, Source


def write_texts(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


def test_two_builds_are_equal_byte_for_byte(recipe: Recipe, folder: DataFolder, tmp_path: Path) -> None:
    again = build_data(recipe, tmp_path)
    names = [p.relative_to(again.path) for p in sorted(again.path.rglob("*")) if p.is_file()]
    assert names == [p.relative_to(folder.path) for p in sorted(folder.path.rglob("*")) if p.is_file()]
    for name in names:
        assert (again.path / name).read_bytes() == (folder.path / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [again.path.name]  # nothing half-written is left


def test_a_finished_build_is_opened_and_a_changed_recipe_is_not(recipe: Recipe, folder: DataFolder) -> None:
    stamp = (folder.path / "manifest.json").stat().st_mtime_ns
    assert build_data(recipe, folder.path.parent).path == folder.path
    assert (folder.path / "manifest.json").stat().st_mtime_ns == stamp
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"held_out": 0.2})})
    assert data_path(other, folder.path.parent) != folder.path


def test_the_card_lists_licences_and_counts(folder: DataFolder) -> None:
    card = (folder.path / "README.md").read_text()
    assert "| stories | text | CC0-1.0 | 2 |" in card
    assert "| talks | chat | MIT | 4 |" in card
    stories = folder.manifest["sources"][0]
    assert stories["train"]["tokens"] == folder.train["stories"].tokens
    assert stories["train"]["documents"] + stories["held_out"]["documents"] == stories["read"]
    assert folder.manifest["sources"][1]["train"]["learned_tokens"] > 0


def test_texts_end_with_end_of_text_and_bytes_are_theirs(folder: DataFolder) -> None:
    shard, tokenizer = folder.train["stories"], folder.tokenizer
    for i in range(20):
        tokens = shard.doc(i).tolist()
        assert tokens[-1] == tokenizer.eos_id
        assert len(tokenizer.decode(tokens).encode()) == shard.bytes[i]


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_damage_is_found_before_training(recipe: Recipe, tmp_path: Path, how: str) -> None:
    file = build_data(recipe, tmp_path).path / "train" / "stories.bin"
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-2] if how == "truncated" else data[:-2] + b"\x07\x01")
    with pytest.raises(DataError, match=r"stories\.bin.*moesaic data build"):
        build_data(recipe, tmp_path)


def test_an_unfinished_folder_is_not_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        DataFolder.open(tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", ["good text here"] * 3)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        build_data(make_recipe([{"name": "a", "path": str(tmp_path / "a.jsonl")}]), tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moesaic.data.build.ShardWriter.add", full)
    with pytest.raises(DataError, match="No space left on device; free some space"):
        build_data(recipe, tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == []


def test_when_everything_is_dropped_the_reasons_are_told(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", ["tiny", "small"])
    recipe = make_recipe([{"name": "a", "path": str(tmp_path / "a.jsonl")}], min_chars=100)
    with pytest.raises(DataError, match=r"all 2 documents were dropped \(2 shorter than 100 characters\)"):
        build_data(recipe, tmp_path)


def test_duplicates_are_dropped_within_and_across_sources(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [sentence(rng, 80) for _ in range(30)]
    near = texts[0].replace("river", "brook", 1) + " The end."
    write_texts(tmp_path / "a.jsonl", [*texts, texts[0], near])
    write_texts(tmp_path / "b.jsonl", [texts[1], texts[2], sentence(rng, 80)])
    sources = [{"name": n, "path": str(tmp_path / f"{n}.jsonl")} for n in "ab"]
    a, b = build_data(make_recipe(sources), tmp_path / "home").manifest["sources"]
    assert a["dropped"] == {"exact duplicate": 1, "near-duplicate": 1}
    assert b["dropped"] == {"exact duplicate": 2}


def test_max_bytes_takes_whole_documents_in_a_fixed_order(tmp_path: Path) -> None:
    rng = random.Random(3)
    write_texts(tmp_path / "a.jsonl", [sentence(rng, 60) for _ in range(100)])
    recipe = make_recipe([{"name": "a", "path": str(tmp_path / "a.jsonl"), "max_bytes": 5000}], dedup_threshold=0)
    (a,) = build_data(recipe, tmp_path / "home").manifest["sources"]
    assert 4000 < a["train"]["bytes"] + a["held_out"]["bytes"] <= 5000


def test_a_corpus_of_one_document_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one and only text")
    folder = build_data(make_recipe([{"name": "a", "path": str(tmp_path / "a.txt")}], held_out=0.49), tmp_path / "home")
    assert len(folder.train["a"]) == 1
    assert len(folder.held_out["a"]) == 0


def test_a_given_tokenizer_is_used_and_must_fit(recipe: Recipe, folder: DataFolder, tmp_path: Path) -> None:
    data = recipe.data.model_copy(update={"tokenizer": str(folder.path / "tokenizer")})
    mine = build_data(recipe.model_copy(update={"data": data}), tmp_path)
    assert mine.train["talks"].doc(0).tolist() == folder.train["talks"].doc(0).tolist()
    small = recipe.model.model_copy(update={"vocab_size": 300})
    with pytest.raises(DataError, match=r"model\.vocab_size = 512"):
        build_data(recipe.model_copy(update={"data": data, "model": small}), tmp_path)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("text", "A quiet morning by the river, and nothing to do.", None),
        ("text", "short", "shorter than 32 characters"),
        ("text", "12 34 56 78 90 -- 11 22 33 44 55 66 77 88 words", "words without letters"),
        ("text", "the same line again\n" * 12, "duplicate lines"),
        ("code", "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n", None),
        ("code", "x = '" + "a" * 2000 + "'\n" + "y = 1\n" * 500, "lines too long for code"),
        ("code", "-+-+-+-+-+ +-+-+-+-\n" * 10, "few letters and digits"),
    ],
)
def test_rules(kind: str, text: str, reason: str | None) -> None:
    source = Source(name="s", path="x", kind=kind)  # type: ignore[arg-type]
    assert reason_to_drop(Document(text, None, ""), source, Data(sources=(source,))) == reason


def test_a_chat_without_an_answer_is_dropped() -> None:
    source = Source(name="s", path="x", kind="chat")
    document = Document(None, [{"role": "user", "content": "is there anybody out there, please?"}], "")
    assert reason_to_drop(document, source, Data(sources=(source,))) == "no assistant turn"


def test_near_duplicates_follow_the_jaccard_similarity_of_shingles() -> None:
    rng = random.Random(5)
    text = " ".join(str(rng.randrange(10_000)) for _ in range(400))
    words = text.split()
    slightly = " ".join([*words[:200], "changed", *words[201:]])
    half = " ".join([*words[:200], *(str(rng.randrange(10_000)) for _ in range(200))])
    exact = len(set(shingles(text)) & set(shingles(slightly))) / len(set(shingles(text)) | set(shingles(slightly)))
    assert exact > 0.9
    seen = NearDuplicates(0.8)
    assert [seen.seen(t) for t in (text, slightly, half, text.upper())] == [False, True, False, True]


@pytest.mark.parametrize(("kept", "least", "most"), [(330, 0, 8), (372, 34, 40)])
def test_near_duplicates_are_told_by_the_threshold(kept: int, least: int, most: int) -> None:
    # Similarities of 0.70 and 0.87 against a threshold of 0.8; estimates of 64 permutations scatter by 0.05.
    rng = random.Random(7)
    seen = NearDuplicates(0.8)
    dropped = 0
    for _ in range(40):
        words = [str(rng.randrange(10_000)) for _ in range(400)]
        seen.seen(" ".join(words))
        dropped += seen.seen(" ".join([*words[:kept], *(str(rng.randrange(10_000)) for _ in range(400 - kept))]))
    assert least <= dropped <= most
