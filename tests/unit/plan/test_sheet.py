"""A sheet as JSON: stable keys, valid whatever the numbers are."""

import json
import math

import numpy as np
import pytest
from sample_sheet import EVIL, sheet

from moesaic.plan.sheet import Interval, Sheet


def test_json_holds_every_figure_and_row_under_its_key() -> None:
    out = json.loads(json.dumps(sheet().to_json(), allow_nan=False))
    assert out["params_total"] == 1_832_612_345_856
    assert out["step_time_s"] == {"p10": 26.83, "p50": 29.41, "p90": 33.02}
    assert out["fits"] is True
    assert out["model_name"] == EVIL
    assert len(out["layouts"]) == 160
    assert out["layouts"][3]["step_time_s"]["p50"] == 32.0
    assert out["empty"] == []
    keys = list(out)
    assert (keys[0], keys[-1]) == ("title", "notes")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan"), Interval(math.nan, 1.0, math.inf)])
def test_what_is_no_number_becomes_null(value: float | Interval) -> None:
    made = Sheet("t")
    made.add("s", "a_s", "a", value, "s", "")
    made.table("rows", "rows", [{"b": value}])
    out = json.loads(json.dumps(made.to_json(), allow_nan=False))
    empty = {"p10": None, "p50": 1.0, "p90": None} if isinstance(value, Interval) else None
    assert out["a_s"] == empty
    assert out["rows"] == [{"b": empty}]


def test_numpy_scalars_are_plain_numbers() -> None:
    made = Sheet("t")
    made.table("rows", "rows", [{"n": np.int64(3), "fits": np.bool_(False), "x": np.float32(0.5)}])
    assert json.dumps(made.to_json()["rows"]) == '[{"n": 3, "fits": false, "x": 0.5}]'


@pytest.mark.parametrize("key", ["title", "notes", "twice"])
def test_no_number_hides_behind_another_of_the_same_key(key: str) -> None:
    made = Sheet("t")
    made.add("s", "twice", "a", 1, "", "")
    made.table(key, "rows", [])
    with pytest.raises(ValueError, match=key):
        made.to_json()


def test_a_figure_is_found_by_its_key() -> None:
    assert sheet()["bubble_pct"] == 28.5714
    with pytest.raises(KeyError):
        sheet()["nowhere"]
