"""Which input decides: the tornado, what turns the choice, draws that scenarios share."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scenario_texts import A100, H100, SERVE, TOP

from moesaic.plan.compare.choose import Priced, price_all, tornado, turning
from moesaic.plan.compare.evaluate import case
from moesaic.plan.compare.scenarios import read_scenarios
from moesaic.plan.prices import prices
from moesaic.plan.sheet import Z90

Price = Callable[[str, int], Sequence[Priced]]


@pytest.fixture
def priced(tmp_path: Path) -> Price:
    """The scenarios of a file's text, at a number of samples."""

    def made(text: str, samples: int) -> Sequence[Priced]:
        path = tmp_path / "scenarios.toml"
        path.write_text(text, encoding="utf-8")
        return price_all([case(s, prices()) for s in read_scenarios(path)], samples, 1)

    return made


def test_the_tornado_is_one_input_moved_at_a_time(priced: Price) -> None:
    text = TOP + SERVE + H100.replace('"rent"', '"buy"') + A100
    bought, other = priced(text, 200)
    base, found = tornado(bought, [bought, other])
    assert base == bought.middle.per_year[0]
    assert [s.size for s in found] == sorted((s.size for s in found), reverse=True)
    labels = {s.input.key for s in found}
    assert {"purchase.h100", "kwh", "pue", "years", "busy", "mfu.h100", "decode.h100", "hall", "operation"} <= labels
    assert "rent.h100" not in labels
    for s in found:
        for z, dollars_a_year in ((-Z90, s.low), (Z90, s.high)):
            assert bought.case.costs({s.input.key: np.array([z])}).per_year[0] == pytest.approx(dollars_a_year)


def test_rent_does_not_hang_on_power_and_drives_itself(priced: Price) -> None:
    rented, bought = priced(TOP + A100 + H100.replace('"rent"', '"buy"'), 200)
    text = TOP + A100.replace('prices = "described"\n', "")
    (market,) = priced(text, 200)
    assert {s.input.key for s in tornado(rented, [rented, bought])[1]} == {"mfu.a100-80", "storage_rented"}
    assert tornado(market, [market])[1][0].input.key == "rent.a100-80"


def test_what_wins_turns_where_the_tornado_says(priced: Price) -> None:
    near = H100.replace('prices = "described"\n', "dollars_per_device_hour = [2, 3.5, 6]\n")
    far = A100.replace('prices = "described"\n', "dollars_per_device_hour = 1\n")
    found = priced(TOP + near + far, 200)
    _, swings = tornado(found[0], found)
    (price,) = [s for s in swings if s.input.key == "rent.h100"]
    assert (price.cheapest_low, price.cheapest_high) == ("H100", "A100")
    assert [(i.key, low, high) for i, low, high in turning(found[1], found)] == [("rent.h100", "H100", "A100")]


def test_scenarios_share_their_draws(priced: Price) -> None:
    """The same machine at twice the rent costs twice as much in every sample, not on average only."""
    twice = A100.replace('"A100"', '"twice"').replace('prices = "described"\n', "dollars_per_device_hour = 2\n")
    one, two = priced(TOP + A100 + twice, 300)
    assert np.allclose(two.sampled.run, 2 * one.sampled.run, rtol=1e-6)
