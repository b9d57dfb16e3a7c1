"""Prices: dated, sourced, overridden by a user's file; nonsense is refused."""

from pathlib import Path

import pytest

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.prices import UNITS, no_rent, prices, rent


def test_the_described_systems_assumptions_and_the_market() -> None:
    shipped = prices()
    assert shipped["assumed_rent.a100-80"].value == 1.0
    assert shipped["assumed_rent.h100"].value == 2.0
    market = shipped["rent.h100"].interval
    assert market.p10 < market.p50 < market.p90


def test_every_price_has_a_date_a_source_and_a_unit() -> None:
    for name, price in prices().table.items():
        assert price.source
        assert price.date[:2] == "20"
        assert name in UNITS or name.split(".")[0] in UNITS
    assert {k for k in UNITS if "." in k} <= set(prices().table)


def test_a_users_file_lies_over_the_shipped_prices(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'rent = { H100 = 1.75, gb300 = { value = 5, high = 6 } }\n[power.pue]\nvalue = 1.1\nsource = "us"\n'
    )
    mine = prices(file)
    assert mine["rent.h100"].amount == 1.75
    assert (mine["rent.gb300"].low, mine["rent.gb300"].high) == (5.0, 6.0)
    assert mine["power.pue"].source == "us"
    assert mine["rent.a100-80"] == prices()["rent.a100-80"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[power]\nwatts = 3", r"unknown key power\.watts; known: rent\.DEVICE"),
        ("[rent]\nk80 = 3", "no device 'k80'"),
        ("[rent.h100]\nprice = 3", "unknown key price"),
        ("[rent.h100]\nlow = 3", "value is missing"),
        ("[rent]\nh100 = -1", "0 < low <= value <= high does not hold"),
        ("[rent.h100]\nvalue = 2\nhigh = 1", "does not hold for 2, 2, 1"),
        ('[rent]\nh100 = "2"', "must be numbers"),
        ("[rent]\nh100 = nan", "must be numbers"),
        ("rent = 2", "rent is no table"),
        ("rent = ", "not a readable prices file"),
    ],
)
def test_nonsense_is_a_short_error(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(PlanError, match=words):
        prices(file)


def test_a_price_that_nobody_gave_says_how_to_give_it() -> None:
    with pytest.raises(PlanError, match=r"no price 'rent\.tpu-v7'; give it in a prices file"):
        prices()["rent.tpu-v7"]


def test_one_rent_for_every_verb() -> None:
    """The market's range, whatever the described system paid; None where nobody quotes a rent."""
    table = prices()
    assert rent(device("a100-80"), None, table) == table["rent.a100-80"]
    given = rent(device("a100-80"), 1.5, table)
    assert given
    assert (given.amount, given.said) == (1.5, "given")
    assert rent(device("rtx-4090"), None, table) is None
    assert "give --price" in no_rent(device("rtx-4090"))


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_without_sense_is_refused(price: float) -> None:
    with pytest.raises(PlanError, match=r"--price .*: give dollars per device-hour, above 0"):
        rent(device("h100"), price, prices())
