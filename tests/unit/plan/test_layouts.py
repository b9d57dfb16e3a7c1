"""Which layouts can run, why others cannot, and what does instead."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import layout_rows, shapes

from moesaic.plan.device import device
from moesaic.plan.feasible import problems
from moesaic.plan.layouts import Layouts, join, valid
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape

A100 = device("a100-80")


@settings(max_examples=300)
@given(shapes(), st.lists(layout_rows(), min_size=4, max_size=4), st.integers(1, 100))
def test_a_layout_is_valid_exactly_when_it_has_no_problem(shape: Shape, rows: list[Layouts], batch: int) -> None:
    layouts = join(rows)
    assert [not problems(shape, row, batch, A100) for row in layouts] == valid(shape, layouts, batch).tolist()


@settings(max_examples=300)
@given(shapes(), layout_rows(), st.integers(1, 100))
def test_what_a_problem_offers_solves_it(shape: Shape, layout: Layouts, batch: int) -> None:
    def rules(row: dict[str, int | str], batch: int) -> dict[str, str]:
        found = problems(shape, row, batch, A100)
        return {"batch" if "raise the batch" in text else text.split(" = ")[0]: text for text in found}

    row = layout.row(0)
    for rule, text in rules(row, batch).items():
        offers = re.findall(r"\b(tp|pp|ep|etp|dp|chunks) = (\d+(?: or \d+)*)", text.split("; ", 1)[1])
        assert offers or "lower the micro-batch" in text or "larger pp" in text
        for name, numbers in offers:
            for number in numbers.split(" or "):
                assert rule not in rules(row | {name: int(number)}, batch)
        if found := re.search(r"raise the batch to ([\d,]+)", text):
            enough = int(found[1].replace(",", ""))
            assert rule not in rules(row, enough)
            assert rule in rules(row, enough - 1)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"tp": 5}, "tp = 5 does not divide 168 heads; use tp = 4 or 7"),
        ({"tp": 16}, "tp = 16 does not divide 168 heads; use tp = 14 or 28 (8 A100 SXM 80 GB share the fast link)"),
        ({"pp": 121}, "pp = 121 stages are more than 120 layers; use pp = 120 or fewer"),
        (
            {"pp": 15, "chunks": 3},
            "chunks = 3 x pp = 15 are not equal parts of 120 layers (up to 2 may be missing, for embedding and head); "
            "use chunks = 2 or 4",
        ),
        ({"chunks": 2}, "chunks = 2 interleaves stages, and pp = 1 has only one; use chunks = 1 or a larger pp"),
        ({"ep": 3, "dp": 3}, "ep = 3 does not divide 16 experts; use ep = 2 or 4"),
        (
            {"tp": 8, "ep": 16, "etp": 8, "dp": 24},
            "ep x etp = 16 x 8 = 128 does not divide the dp x cp x tp = 192 ranks of a stage; use ep = 8, or dp = 16 "
            "or 32",
        ),
        ({"tp": 8, "etp": 2}, "etp = 2: experts are whole or split like dense blocks; use etp = 1 or 8 (tp)"),
        (
            {"dp": 4000},
            "a batch of 3,000 sequences is less than dp x micro-batch = 4000 x 1 = 4,000; use dp = 3000 or fewer, "
            "or raise the batch to 4,000 sequences",
        ),
        (
            {"pp": 15, "chunks": 8, "dp": 300},
            "10 micro-batches are less than a round of pp = 15, which interleaving needs; use dp = 200 or fewer, or "
            "raise the batch to 4,500 sequences",
        ),
        ({"tp": 0, "dp": -1}, "tp = 0: give at least 1; dp = -1: give at least 1"),
    ],
)
def test_each_rule_has_its_words(given_: dict[str, int], words: str) -> None:
    row = {"etp": 1, "ep": 1} | given_
    plain = dict.fromkeys(("tp", "pp", "cp", "dp", "micro_batch", "chunks"), 1)
    found = problems(read_shape("gpt4"), plain | row, 3000, A100)
    if given_.get("etp") == 2:  # two ranks of one expert do not divide eight
        found = [p for p in found if p.startswith("etp")]
    assert "; ".join(found) == words


def test_key_value_heads_and_dense_models() -> None:
    shape = read_shape("llama-3-8b")  # 8 key/value heads for 32
    assert problems(shape, Layouts.of(tp=16, dp=1).row(0), 8, A100) == []
    assert problems(shape, Layouts.of(ep=2, dp=2).row(0), 8, A100) == [
        "ep = 2, but the model has no experts; use ep = 1"
    ]
    olmo = Shape("x", 2, 24, 12, 4, 2, 96, 100)
    assert problems(olmo, Layouts.of(tp=6).row(0), 8, A100) == [
        "tp = 6 neither divides 4 key/value heads nor is a multiple of them; use tp = 4 or 12"
    ]


def test_devices_that_a_layout_leaves_or_lacks() -> None:
    shape, row = read_shape("gpt4"), Layouts.of(tp=8, pp=15, dp=200).row(0)
    assert problems(shape, row, 3000, A100, 25_000) == [
        "tp x pp x cp x dp = 8 x 15 x 1 x 200 = 24,000 is not the 25,000 A100 SXM 80 GB given; use dp = 208 (24,960 "
        "devices) or dp = 209 (25,080 devices)"
    ]
    assert problems(shape, row, 3000, A100, 24_000) == []
    assert problems(shape, row, 3000, A100, 100) == [
        "tp x pp x cp = 120 needs more than the 100 A100 SXM 80 GB given; lower one of them"
    ]


def test_layouts_broadcast_join_and_slice() -> None:
    layouts = Layouts.of(tp=np.array([1, 2, 4]), pp=3, ep=np.array([1, 4, 1]), dp=4, recompute=2)
    assert layouts.etp.tolist() == [1, 1, 4]  # whole experts where they are spread over ranks
    assert layouts.world.tolist() == [12, 24, 48]
    assert layouts.edp.tolist() == [4, 2, 4]
    assert (layouts.ep * layouts.etp * layouts.edp * layouts.pp == layouts.world).all()
    twice = join([layouts, layouts[1:2]])
    assert len(twice) == 4
    assert twice.row(3) == layouts.row(1)
    assert layouts.row(0)["recompute"] == "full"


def test_interleaving_takes_whole_rounds() -> None:
    layouts = Layouts.of(pp=15, dp=208, chunks=np.array([1, 8]))
    assert layouts.micro_batches(35 * 208).tolist() == [35, 30]
