"""The card's block: written once, replaced row by row, and nothing else on the card changes."""

import json
from pathlib import Path

import pytest

from moesaic.errors import ModelError
from moesaic.evals import BitsPerByte, ChoiceScore, Match, SuiteOverlap, SuiteResult, keep_results
from moesaic.evals.card import BEGIN, CARD, END, RESULTS

TRAINED = "# tiny\n\n## Data\n\nx\n\n## Evaluation\n\n| after stage |\n| --- |\n| pretrain |\n\n## Limits\n\nMany.\n"
PIQA = SuiteResult("piqa", "PIQA, validation", ChoiceScore(200, 0.65, 0.034, 0.66, 0.033, 0.5, 0))
BETTER = SuiteResult("piqa", "PIQA, validation", ChoiceScore(1500, 0.712, 0.012, 0.7, 0.012, 0.5, 0))
BOOLQ = SuiteResult("boolq", "BoolQ, dev", ChoiceScore(100, 0.5, 0.05, 0.5, 0.05, 0.5, 3))
BITS = SuiteResult("bits", "a.txt, 1 document", BitsPerByte(1.234, 0.01, 3.0, 10, 40))
OTHER = SuiteResult("bits", "b.txt, 1 document", BitsPerByte(2.5, 0.0, 3.0, 10, 40))


def card(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8")


def test_the_block_stands_at_the_end_of_its_section_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(TRAINED)
    keep_results(tmp_path, [PIQA, BITS])
    before, rest = card(tmp_path).split(BEGIN)
    inside, after = rest.split(END)
    assert before.startswith(TRAINED[: TRAINED.index("\n\n## Limits")])
    assert after == "\n\n## Limits\n\nMany.\n"
    assert "| PIQA, validation | 200 | 65.0% ± 3.4% | 66.0% ± 3.3% | 50.0% |" in inside
    assert "| a.txt, 1 document | 40 | 1.234 ± 0.010 |" in inside


def test_the_same_results_change_nothing(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(TRAINED)
    keep_results(tmp_path, [PIQA, BITS])
    first = card(tmp_path), (tmp_path / RESULTS).read_text()
    keep_results(tmp_path, [BITS, PIQA])
    assert (card(tmp_path), (tmp_path / RESULTS).read_text()) == first


def test_a_suite_measured_again_replaces_its_row_only(tmp_path: Path) -> None:
    keep_results(tmp_path, [PIQA, BITS])
    keep_results(tmp_path, [BETTER, BOOLQ])
    keep_results(tmp_path, [OTHER])
    text = card(tmp_path)
    assert "71.2%" in text
    assert "65.0%" not in text
    assert all(part in text for part in ("BoolQ, dev", "a.txt, 1 document", "| b.txt, 1 document | 40 | 2.500 |"))
    assert text.count(BEGIN) == text.count(END) == text.count("## Evaluation") == 1
    assert set(json.loads((tmp_path / RESULTS).read_text())) == {"piqa", "boolq", BITS.title, OTHER.title}


def test_a_sample_does_not_replace_the_whole_suite(tmp_path: Path) -> None:
    keep_results(tmp_path, [BETTER])
    keep_results(tmp_path, [PIQA])
    assert "71.2%" in card(tmp_path)
    assert "65.0%" not in card(tmp_path)


def test_a_folder_without_a_card_gets_one(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    keep_results(tmp_path / "small", [PIQA])
    assert card(tmp_path / "small").startswith(f"# small\n\n## Evaluation\n\n{BEGIN}\n")


def test_overlap_is_on_the_card(tmp_path: Path) -> None:
    found = SuiteOverlap(200, 40, frozenset(("piqa/1",)), (Match("piqa/1", "prose", "a b"),))
    clean = ChoiceScore(199, 0.64, 0.03, 0.65, 0.03, 0.5, 0)
    keep_results(tmp_path, [SuiteResult("piqa", PIQA.title, PIQA.score, (), found, clean)])
    assert (
        "- PIQA, validation: 1 of 160 share 13 words in a row with the training data (40 too short to check); "
        "accuracy on the other 199: 64.0% ± 3.0%"
    ) in card(tmp_path)
    kept = json.loads((tmp_path / RESULTS).read_text())["piqa"]["overlap"]
    assert kept["examples"] == [{"item": "piqa/1", "source": "prose", "words": "a b"}]


def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(TRAINED)
    (tmp_path / f"{RESULTS}.partial").mkdir()  # stands for a folder that cannot be written
    with pytest.raises(ModelError, match=r"results are not kept in .*; make it writable, or use --no-card"):
        keep_results(tmp_path, [PIQA])
    assert card(tmp_path) == TRAINED
    assert not (tmp_path / RESULTS).exists()


@pytest.mark.parametrize("content", ["[1]", "{", '{"piqa": {}}', '{"piqa": 3}'])
def test_results_of_another_kind_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(ModelError, match=r"evaluation.json does not hold results of `moesaic eval`.*delete it"):
        keep_results(tmp_path, [PIQA])
    assert (tmp_path / RESULTS).read_text() == content
