"""How keys and columns read: one meaning a heading, nothing that tells a reader nothing."""

from moesaic.plan.sheet import Interval
from moesaic.plan.wording import columns_of, heading, text


def test_headings_are_spelled_and_a_share_of_days_is_not_days() -> None:
    assert [heading(k) for k in ("mfu_share", "days", "days_share")] == ["MFU", "days", "share of days"]
    assert [heading(k) for k in ("etp", "check_mape_share", "over_6n_ratio")] == ["ETP", "check MAPE", "over 6 N ratio"]
    assert heading("total_over_gpt3_ratio") == "total over GPT-3 ratio"


def test_shares_are_read_in_per_cent() -> None:
    assert [text(v, share=True) for v in (0.03808, -0.121, 1.0, 12.5)] == ["3.81 %", "-12.1 %", "100 %", "1,250 %"]


def test_columns_that_tell_nothing_are_left_out() -> None:
    rows = [
        {"devices_asked": 8, "obstacle": None, "fits": True, "held": False, "kept": 3},
        {"devices_asked": 8, "obstacle": None, "fits": True, "held": False, "kept": 3},
    ]
    assert [c.key for c in columns_of(rows)] == ["held", "kept"]
    rows[1] |= {"devices_asked": 16, "obstacle": "too slow", "fits": False}
    assert [c.key for c in columns_of(rows)] == list(rows[0])
    assert [c.key for c in columns_of(rows[:1])] == ["devices_asked", "fits", "held", "kept"]


def test_dollars_tokens_and_parameters_have_one_scale_a_column() -> None:
    rows = [{"run_usd": Interval(5e7, 6e7, 7e7), "seen_tokens": 13e12}, {"run_usd": 2.5e5, "seen_tokens": 5e11}]
    usd, tokens = columns_of(rows)
    assert (usd.heading, list(usd.cells)) == ("run M$", ["60 (50 to 70)", "0.25"])
    assert (tokens.heading, list(tokens.cells)) == ("seen tokens, B", ["13,000", "500"])
    (small,) = columns_of([{"output_usd_per_1k_tokens": 0.0049}])
    assert (small.heading, small.cells) == ("output $ per 1k tokens", ["0.0049"])


def test_degrees_of_a_layout_are_one_column_of_words() -> None:
    names = ("tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks", "zero")
    row = dict(zip(names, (8, 15, 1, 208, 16, 1, 1, 8, 1), strict=True)) | {"recompute": "full", "days": 90.0}
    layout, days = columns_of([row])
    assert list(layout.cells) == ["tp8 pp15 dp208 ep16 v8 mb1 ZeRO-1 full"]
    assert days.key == "days"
