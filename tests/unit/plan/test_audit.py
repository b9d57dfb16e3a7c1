"""The shipped claims: verdicts come out of the rules, slips with their factor, each difference is argued."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from moesaic.commands.plan.audit import audit as verb
from moesaic.errors import PlanError
from moesaic.plan.audit import audit, sheet_of
from moesaic.plan.audit.claims import shipped
from moesaic.plan.audit.verdict import Verdict


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {v.claim.id: v for v in audit()}


def test_all_sixty_one_are_there(verdicts: dict[str, Verdict]) -> None:
    assert list(verdicts) == [str(n) for n in range(1, 62)]


def test_the_seven_scale_slips_have_their_factor(verdicts: dict[str, Verdict]) -> None:
    factors = {id: v.factor for id, v in verdicts.items() if v.verdict == "garbled" and v.factor}
    assert factors == {"9": 10, "10": 10, "11": 1000, "12": 1000, "22": 10, "51": 100, "52": 100}
    assert verdicts["11"].corrected == "557.8 GFLOP/token"
    assert verdicts["51"].corrected == "0.0049 $ / 1k tokens"


def test_a_rate_for_a_count_is_an_error_of_dimension(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["13"].label == "garbled (unit)"
    assert verdicts["13"].corrected == "557.8 GFLOP/token"


def test_130_billion_a_node_is_wrong_and_means_14_nodes(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["57"].verdict == "wrong"
    assert verdicts["57"].nearest == 14
    assert "114.5" in verdicts["57"].corrected
    assert "122.2" in verdicts["57"].corrected


def test_25000_gpus_are_loose_with_both_neighbours(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["28"].verdict == "loose"
    assert verdicts["28"].corrected == "24,960 or 25,080"
    assert verdicts["28"].nearest == 24960


def test_differences_from_the_expected_verdicts_are_argued(verdicts: dict[str, Verdict]) -> None:
    different = {id for id, v in verdicts.items() if v.verdict != v.claim.expected}
    assert different == {"3", "42", "53", "57", "60"}
    assert {id for id, v in verdicts.items() if v.claim.differs} == different


def test_verdicts_are_computed_and_not_read_from_the_file() -> None:
    table = tomllib.loads(shipped())
    for claim in table["claims"]:
        for stored in ("expected", "note", "differs"):
            claim.pop(stored, None)
        claim["text"] = re.sub(r"[<>]|more than", "", claim["text"])  # bounds state their direction as a field
        if claim["id"] == 1:
            claim["bound"] = "lower"
        if claim["id"] == 58:
            claim["bound"] = "upper"
    assert [v.label for v in audit(table)] == [v.label for v in audit()]


def test_another_model_gets_other_verdicts() -> None:
    changed = {v.claim.id: v.verdict for v in audit(tomllib.loads(shipped()), recipe="pocket")}
    assert changed["2"] == "wrong"
    assert changed["28"] == "ok"  # on one rank


def test_the_sheet_counts_and_keeps_stable_keys(verdicts: dict[str, Verdict]) -> None:
    sheet = sheet_of(list(verdicts.values()))
    found = sheet.to_json()
    assert found["claims"] == 61
    assert found["garbled_claims"] == 8
    assert found["agreeing_claims"] == 56
    assert len(found["verdicts"]) == 61
    assert [s["factor"] for s in found["slips"]] == [10, 10, 1000, 1000, None, 10, 100, 100]
    assert all(d["why"] != "not argued" for d in found["differences"])
    assert {"id", "reading", "expression", "computed", "unit", "holds"} == set(found["readings"][0])
    json.dumps(found, allow_nan=False)


def test_the_verb_prints_a_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verb)

    def call(*words: str) -> str:
        app(list(words), standalone_mode=False)
        return capsys.readouterr().out

    file = tmp_path / "mine.toml"
    file.write_text('[[claims]]\nid = 1\ntext = "a [bold] one"\nunit = "GB"\nclaimed = 14\n'
                    'readings = [{ name = "16 bit", expression = "2 bytes * 70e9" }]\n')  # fmt: skip
    out = call(str(file))
    assert "garbled x10" in out
    assert "a [bold] one" in out
    found: dict[str, Any] = json.loads(call(str(file), "--json"))
    assert found["verdicts"][0]["factor"] == 10
    assert "2 bytes * 70e9" in call(str(file), "--explain")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nowhere"):
        audit(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_bytes(b"claims = [\xff")
    with pytest.raises(PlanError, match="is not TOML"):
        audit(tmp_path / "bad.toml")


def test_pint_is_loaded_by_the_audit_alone() -> None:
    code = """
import sys
import moesaic.plan.audit, moesaic.commands.plan
assert not {"pint", "numpy", "torch", "rich"} & set(sys.modules), sorted(sys.modules)
moesaic.plan.audit.audit()
assert "pint" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
