"""The run folder: `runs/NAME/` holds every stage of a run.

recipe.toml    resolved recipe           forecast.json  what was expected before step 1
metrics.jsonl  one line a step           ledger.json    tokens and epochs per source
checkpoints/   see checkpoint.py         model/         the finished model folder
"""

import json
from pathlib import Path
from typing import Any

from moesaic.data import Ledger
from moesaic.durable import write_durably
from moesaic.errors import CheckpointError
from moesaic.recipe import Recipe, read_recipe
from moesaic.recipe.show import to_toml


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.metrics = path / "metrics.jsonl"
        self.forecast = path / "forecast.json"
        self.ledger = path / "ledger.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    def open(self, recipe: Recipe, resume: bool) -> None:
        """Create the folder, or check that it holds the same system. Raises CheckpointError."""
        if not self.recipe.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.recipe, to_toml(recipe).encode())
            return
        if not resume:
            raise CheckpointError(
                f"{self.path} already holds a run; continue it with --resume, or choose another name with --run"
            )
        before = read_recipe(self.recipe)
        if before.system_hash() != recipe.system_hash():
            raise CheckpointError(
                f"{self.path} was begun with another system (model, data, stages or seed): {before.system_hash()}, "
                f"now {recipe.system_hash()}; `moesaic recipe diff {self.recipe} ...` shows it. Resume with that recipe"
            )

    def write_json(self, path: Path, value: Any) -> None:
        """Replace a JSON file in one step."""
        write_durably(path, json.dumps(value, indent=1).encode())

    def write_ledger(self, ledger: Ledger, recipe: Recipe) -> None:
        """Tokens and epochs per source, beside what the recipe declares."""
        sources = {
            s.name: {
                "kind": s.kind,
                "licence": s.licence,
                "tokens": ledger.tokens[s.name],
                "epochs": ledger.epochs(s.name),
                "cap_epochs": s.epochs,
                "tokens_per_epoch": ledger.epoch_tokens[s.name],
            }
            for s in recipe.data.sources
            if s.name in ledger.tokens
        }
        self.write_json(self.ledger, {"sources": sources, "total": ledger.total})
