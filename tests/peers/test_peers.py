"""Other programs read what we export and compute what we compute: see docs/peers.md.

`make test` does not collect this folder, because it needs the environments that `make peers` builds.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peers.comparison import Comparison, compare
from peers.subjects import NEW_TOKENS, Subject

ROOT = Path(__file__).parents[2]
DRIVERS = Path(__file__).parent / "drivers"
PEERS = ("transformers", "vllm", "llama_cpp")
MODELS = ("tiny", "pocket", "upcycled")
LIMIT_S = 1500  # a peer starts in a minute; this is for the case that it hangs

pytestmark = pytest.mark.timeout(LIMIT_S + 300)


def ask(peer: str, model: Path, subject: Subject, home: Path) -> dict[str, Any]:
    """Answers of `peer`, from a process in its own environment, about the prompts and our tokens."""
    python = ROOT / ".peers" / peer / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"no environment at {python.parents[1]}; build it with: make peers", pytrace=False)
    request = {
        "model": str(model),
        "prompts": subject.prompts,
        "continuations": subject.tokens,
        "new_tokens": NEW_TOKENS,
        "threads": 1,  # enough here; on a busy machine more would wait for one another
    }
    (home / "request.json").write_text(json.dumps(request))
    # Nothing of ours can be imported there, and no model is looked for on the network.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, DRIVERS / f"{peer}_driver.py", home / "request.json", home / "answer.json"],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    answer: dict[str, Any] = json.loads((home / "answer.json").read_text())
    return answer


def compare_all(subject: Subject, answer: dict[str, Any]) -> list[Comparison]:
    """One comparison for each prompt."""
    each = zip(subject.tokens, subject.logits, answer["greedy"], answer["log_probs"], strict=True)
    return [compare(ours, logits, theirs, log_probs) for ours, logits, theirs, log_probs in each]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_peer_computes_what_we_compute(
    model: str, peer: str, subject: Callable[[str], Subject], tmp_path: Path, table: list[str]
) -> None:
    ours = subject(model)
    answer = ask(peer, ours.gguf if peer == "llama_cpp" else ours.folder, ours, tmp_path)
    found = compare_all(ours, answer)
    equal = sum(NEW_TOKENS if c.first_difference is None else c.first_difference for c in found)
    ties = sum(c.first_difference is not None for c in found)
    largest = max(c.log_prob_difference for c in found)
    table.append(
        f"| {model} | {peer} {answer['version']} | {len(found)} | {equal} of {NEW_TOKENS * len(found)} "
        f"| {ties} | {largest:.1e} |"
    )
    assert not [problem for c in found for problem in c.problems]


@pytest.mark.parametrize("peer", PEERS)
def test_another_model_is_noticed(peer: str, subject: Callable[[str], Subject], tmp_path: Path) -> None:
    """The same comparison says no: prompts of the tiny model, its vocabulary a part of pocket's."""
    ours, other = subject("tiny"), subject("pocket")
    found = compare_all(ours, ask(peer, other.gguf if peer == "llama_cpp" else other.folder, ours, tmp_path))
    assert all(c.problems for c in found)
