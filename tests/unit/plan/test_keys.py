"""One rule for the keys of every verb's --json, CONTRIBUTING.md: a key says what it counts, one name a quantity."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moesaic.cli import app
from moesaic.plan.sheet import Sheet

RUNS = "id,model,device,n_devices,tp,pp,dp,seq_len,global_batch_seqs,metric,value,unit\n"
RUNS += "a,gpt3,h100,128,8,8,2,2048,256,mfu,40,%\n"
VERBS = {
    "params": "gpt4 --vision",
    "train": "gpt4 --hardware a100-80 --gpus 24960 --optimality",
    "search": "gpt4 --hardware a100-80 --gpus 12480,24960 --top 2",
    "search, why no FSDP": "gpt4 --hardware a100-80 --gpus 24960 --top 2 --why-no-fsdp",
    "search, mixed": "gpt4 --hardware a100-80:16384,h100:8192",
    "serve": "gpt4 --hardware a100-80 --gpus 128 --tp 8 --pp 16 --rate 1 --target 0.005 --disaggregate --drafts 2"
    " --against gpt3",
    "failures": "gpt4 --gpus 24960 --price 1 --straggler-rate 1e-6",
    "compare": "",
    "audit": "",
    "validate": "--rows",
    "fit": "RUNS",
}
TOLD_BY_A_UNIT = {"p10", "p50", "p90", "value", "next_value", "published", "predicted", "computed", "nearest_count"}
WITHOUT_UNIT = {"sigma", "sigma_sparse", "spearman", "factor", "before", "after"}  # pure numbers, known by name
DEGREES = {"tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks", "zero", "stage"}
NOUNS = (
    "tokens|devices|devices_used|devices_asked|layouts|sequences|micro_batches|parameters|experts|layers|stages|nodes|"
    "rows|claims|replicas|requests|clusters|heads|copies|epochs|interruptions|steps|runs|batches"
)
ENDS = re.compile(
    r"(^|_)(share|ratio|usd(_per_\w+)?|days|(s|ms|h|months)|(bytes|gb|tb)(_per_\w+)?|mw|mwh|nats|"
    r"g?flop(_per_\w+)?|device_hours|(per)_\w+|" + NOUNS + r")$"
)
OTHER_NAMES = {  # what a quantity must not be called, for it has a name
    "mfu": "mfu_share", "hfu": "hfu_share", "bubble": "bubble_share", "goodput": "goodput_share",
    "dollars": "run_usd", "megawatts": "power_mw", "failures": "interruptions", "expected_failures": "interruptions",
    "first_token_s": "ttft_s", "first_s": "ttft_s", "token_ms": "tpot_ms", "interval_s": "checkpoint_interval_s",
    "tokens_per_expert": "batch_tokens_per_expert", "price_per_device_hour": "rent_usd_per_device_hour",
    "devices": "devices_used or devices_asked",
}  # fmt: skip


def told(verb: str, path: Path) -> dict[str, Any]:
    runs = path / "runs.csv"
    runs.write_text(RUNS, encoding="utf-8")
    if verb == "fit":
        pytest.importorskip("scipy")
    words = VERBS[verb].replace("RUNS", str(runs)).split()
    run = CliRunner().invoke(app, ["plan", verb.split(",")[0], *words, "--json"])
    assert run.exit_code == 0, run.output
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def numbers(sheet: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of figures and of rows whose values are numbers or intervals."""
    tables = [row for value in sheet.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    for row in [sheet, *tables]:
        for key, value in row.items():
            value = value["p50"] if isinstance(value, dict) else value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield key, value


@pytest.mark.parametrize("verb", VERBS)
def test_keys_end_in_what_they_count_and_have_one_name(verb: str, tmp_path: Path) -> None:
    keys = dict(numbers(told(verb, tmp_path)))
    assert keys
    fine = TOLD_BY_A_UNIT | WITHOUT_UNIT | DEGREES
    assert [k for k in keys if k not in fine and not ENDS.search(k)] == []
    assert {k: OTHER_NAMES[k] for k in keys if k in OTHER_NAMES} == {}
    assert [k for k in keys if re.search(r"pct|percent|dollars|million|(^|_)[bt]$|_mb$", k)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_share_is_a_fraction_and_its_unit_says_so(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sheet] = []
    plain = Sheet.to_json
    monkeypatch.setattr(Sheet, "to_json", lambda sheet: seen.append(sheet) or plain(sheet))
    found = told(verb, tmp_path)
    (sheet,) = seen
    assert [f.key for f in sheet.figures if f.key.endswith("_share") != (f.unit == "share")] == []
    assert [f.key for f in sheet.figures if "%" in f.unit] == []
    assert [f.key for f in sheet.figures if f.unit.startswith("$") != ("usd" in f.key.split("_"))] == []
    bounded = [v for k, v in numbers(found) if k.endswith("_share") and not k.startswith(("error", "mape", "regret"))]
    assert all(-1 <= value <= 1 for value in bounded)
