"""What every benchmark notes about the machine, and how results are kept."""

import json
from pathlib import Path
from typing import Any

import torch

from moesaic.train.machine import cpu_model

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, threads and torch build."""
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
