"""Files of scenarios: what they may say, and one line for what they may not."""

from pathlib import Path

import pytest

from moesaic.errors import PlanError
from moesaic.plan.compare.evaluate import case
from moesaic.plan.compare.scenarios import example_text, read_scenarios
from moesaic.plan.prices import prices
from moesaic.plan.sheet import Interval

SERVING = "[serving]\nrequests_per_s = 20\nprompt = 1500\noutput = 300\nttft_s = 3\ntpot_ms = 100\nweights = 'fp8'\n"
TRAINING = "[training]\nsource = 'gpt4'\ntokens = '13T'\nbatch = '60M'\n"
ONE = "[[scenarios]]\nname = 'one'\nhardware = 'h100'\ncount = 8192\nmode = 'rent'\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "scenarios.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_example_reads() -> None:
    found = read_scenarios()
    assert len(found) >= 5
    assert {s.mode for s in found} == {"rent", "buy"}
    assert all(s.training and s.serving for s in found)
    assert "[[scenarios]]" in example_text()


def test_a_scenario_changes_single_keys_of_what_all_share(tmp_path: Path) -> None:
    text = TRAINING + SERVING + ONE + "serving = { prompt = 900 }\n" + ONE.replace("one", "two") + "serving = false\n"
    one, two = read_scenarios(written(tmp_path, text))
    assert one.training
    assert one.serving
    assert (one.serving.prompt, one.serving.output) == (900, 300)
    assert one.training.tokens == 13e12
    assert two.serving is None
    assert two.training == one.training


def test_numbers_may_be_uncertain(tmp_path: Path) -> None:
    text = SERVING.replace("= 20", "= [10, 20, 80]") + ONE + "dollars_per_device_hour = [1, 4]\n"
    (one,) = read_scenarios(written(tmp_path, text))
    assert one.serving
    assert one.serving.requests_per_s == Interval(10, 20, 80)
    assert one.dollars_per_device_hour == Interval(1, 2, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no scenarios"),
        ("scenarios = 3\n", "scenarios = 3"),
        ("what = 1\n" + SERVING + ONE, "what: unknown key"),
        (SERVING + "[[scenarios]]\nhardware = 'h100'\nmode = 'rent'\n", "scenario 1: name is missing"),
        (SERVING + ONE + ONE, "two scenarios"),
        (ONE, '"one": neither training nor serving'),
        (SERVING + ONE.replace("h100", "h1000"), '"one": hardware: no device'),
        (SERVING + ONE.replace("'rent'", "'lease'"), '"one": mode = lease: use one of rent, buy'),
        (SERVING + ONE.replace("8192", "-8"), '"one": count = -8'),
        (SERVING + ONE.replace("8192", "8192.5"), '"one": count = 8192.5'),
        (TRAINING + ONE.replace("count = 8192\n", ""), '"one": count is missing'),
        (SERVING + ONE.replace("count = 8192", "count = 4"), '"one": count = 4: one cluster takes'),
        (SERVING.replace("ttft_s", "ttft") + ONE, '"one": serving.ttft: unknown key; did you mean ttft_s?'),
        (SERVING.replace("= 3\n", "= '3 s'\n") + ONE, '"one": serving.ttft_s = 3 s: give a plain number'),
        (SERVING.replace("= 3\n", "= -3\n") + ONE, '"one": serving.ttft_s = -3'),
        (SERVING.replace("= 3\n", "= inf\n") + ONE, '"one": serving.ttft_s = inf'),
        (SERVING.replace("= 20", "= [20, 10]") + ONE, '"one": serving.requests_per_s = [20, 10]: p10 <= p50'),
        (SERVING.replace("output = 300\n", "") + ONE, '"one": serving.output is missing'),
        (SERVING.replace("fp8", "fp7") + ONE, "\"one\": no weight precision 'fp7'"),
        (SERVING + "engine = 'none'\n" + ONE, "\"one\": no engine 'none'"),
        (SERVING + "tp = 5\npp = 16\n" + ONE, '"one": tp 5 does not divide'),
        (SERVING + "tp = 8\npp = 1\n" + ONE, '"one": serving: weights of'),
        (TRAINING.replace("13T", "lots") + ONE, '"one": training.tokens lots: give a positive'),
        (TRAINING + "restart = 600\n" + ONE, '"one": training.restart 600: give a time with its unit'),
        (TRAINING + "run_mfu = 40\n" + ONE, '"one": training.run_mfu = 40: give a number above 0 to 1'),
        (TRAINING + "run_mfu = 0.4\nstep_mfu = 0.4\n" + ONE, '"one": training.run_mfu and step_mfu: give one'),
        (TRAINING + "run_mfu = 0.4\npp = 15\n" + ONE, '"one": training.pp: a given MFU'),
        (TRAINING + "precision = 'fp4'\n" + ONE, '"one": --precision: H100 SXM 80 GB has no fp4'),
        (TRAINING.replace("gpt4", "gpt5") + ONE, "\"one\": no model 'gpt5'"),
        (TRAINING + "failures_per_device_hour = 1\n" + ONE, '"one": 8,064 devices that fail this often'),
        (TRAINING + "[money]\npue = 0.9\n" + ONE, '"one": money.pue = 0.9: give a number from 1'),
        (TRAINING + "[money]\ndollars_per_kwh = '8 ct'\n" + ONE, '"one": money.dollars_per_kwh = 8 ct'),
        (TRAINING + ONE.replace("h100", "tpu-v4"), '"one": no rent for TPU v4'),
        (TRAINING + ONE.replace("h100", "mi300x").replace("rent", "buy"), '"one": no price for MI300X'),
        ("[[scenarios\n", "not a readable file"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        [case(scenario, prices()).costs({}) for scenario in read_scenarios(path)]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not a readable file"):
        read_scenarios(tmp_path / "none.toml")
