"""The ledger: how many tokens of each source were trained on, and how many epochs that makes."""

from collections.abc import Mapping
from typing import Any

from moesaic.data.batch import Batch


class Ledger:
    """Counts inputs that are not padding, exactly, per source. Kept in checkpoints, so a resume does not
    change it."""

    def __init__(self, epoch_tokens: Mapping[str, int]) -> None:
        """`epoch_tokens`: inputs that one epoch of each source holds. Tokens."""
        self.epoch_tokens = dict(epoch_tokens)
        self.tokens = dict.fromkeys(self.epoch_tokens, 0)

    def add(self, batch: Batch) -> None:
        """Count a batch that was trained on."""
        for source, tokens in batch.source_tokens.items():
            self.tokens[source] += tokens

    @property
    def total(self) -> int:
        """Tokens of all sources."""
        return sum(self.tokens.values())

    def epochs(self, source: str) -> float:
        """Epochs done of `source`; exactly its declared number when it is exhausted."""
        per_epoch = self.epoch_tokens[source]
        return self.tokens[source] / per_epoch if per_epoch else 0.0

    def table(self) -> list[dict[str, Any]]:
        """One row per source: source, tokens, epoch_tokens, epochs."""
        return [
            {"source": s, "tokens": n, "epoch_tokens": self.epoch_tokens[s], "epochs": self.epochs(s)}
            for s, n in self.tokens.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"tokens": dict(self.tokens), "epoch_tokens": dict(self.epoch_tokens)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.epoch_tokens = {s: int(n) for s, n in state["epoch_tokens"].items()}
        self.tokens = {s: int(n) for s, n in state["tokens"].items()}
