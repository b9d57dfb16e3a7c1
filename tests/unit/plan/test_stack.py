"""Profiles of training stacks."""

import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest

from moesaic.errors import PlanError
from moesaic.plan.stack import Stack, read_stacks, stack, stacks

SHARES = ("memory", "domain", "network", "exposed_tp", "exposed_ep", "exposed_dp", "exposed_pp", "exposed_zero3")


@pytest.mark.parametrize("name", list(stacks()))
def test_efficiencies_are_shares_and_times_are_not_negative(name: str) -> None:
    found = stack(name)
    assert found.name == name
    assert found.source
    assert found.label
    for share in SHARES:
        assert 0 < getattr(found, share) <= 1
    for table in (found.gemm, found.attention):
        assert table
        assert all(0 < share <= 1 for share in table.values())
    assert min(found.layer_us, found.sparse_us, found.sync_us, found.step_ms, found.latency_us) >= 0
    assert min(found.elementwise, found.scores, found.pace) > 0.5
    assert 0 < found.sigma < 1
    assert 0 < found.sigma_sparse < 1


def test_a_generation_without_calibration_takes_the_mean() -> None:
    found = stack("megatron-core")
    assert found.rate({"a100": 0.4, "h100": 0.6}, "v100") == 0.5
    assert found.rate({"a100": 0.4, "h100": 0.6}, "h100") == 0.6


def test_profiles_from_a_file(tmp_path: Path) -> None:
    shipped = files("moesaic.plan").joinpath("stacks.toml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.replace("pace = 1.0\n", "pace = 1.5\n", 1), encoding="utf-8")
    assert stack("megatron-core", mine).pace == 1.5
    assert stack("megatron-core").pace == 1.0


@pytest.mark.parametrize("text", [None, "no toml", "[stack.x]\n", "[common]\n[stack.x]\nknob = 1\n"])
def test_a_file_that_holds_no_profiles(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match="no file of stack profiles"):
        stack("x", path)


def test_an_unknown_stack_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"no stack 'x'; known: megatron-2021, megatron-core"):
        stack("x")


def test_what_a_profile_has_of_its_own_wins() -> None:
    table = tomllib.loads(files("moesaic.plan").joinpath("stacks.toml").read_text(encoding="utf-8"))
    own = {"label": "Mine", "source": "a log", "memory": 0.5}
    found = read_stacks({"common": table["common"], "stack": {"mine": own}})["mine"]
    assert (found.memory, found.label, found.domain) == (0.5, "Mine", table["common"]["domain"])
    assert {f.name for f in fields(Stack)} == {"name", *table["common"], *own}
