"""How well the planner orders layouts: over published sets that ran one model in several layouts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.plan.layouts import Array
from moesaic.plan.measured import Answer

FEWEST = 3  # layouts of a set
LAYOUT = ("n_devices", "tp", "pp", "cp", "dp", "ep", "vpp", "zero", "micro_batch")


@dataclass(frozen=True)
class Ranking:
    """One set: device-seconds of a step, as published and as predicted, in layouts of one model."""

    name: str
    rows: int
    check_rows: int
    spearman: float
    regret: float  # how much slower the layout predicted to be best ran than the one that was


def rankings(answers: Sequence[Answer]) -> list[Ranking]:
    """Every set of scored rows that share source, model, device, context and global batch, in 3 layouts or more.

    Device counts may differ within a set, so layouts are ordered by device-seconds a step.
    """
    sets: dict[tuple[str, ...], dict[tuple[str, ...], Answer]] = defaultdict(dict)
    for answer in answers:
        row = answer.trial.row
        if answer.scored.scored:
            key = (row["source"].split(",")[0], row["model"], row["device"], row["seq_len"], row["global_batch_seqs"])
            # Modules of selective recomputation are one to the planner; another stack is another choice.
            mode = row["recompute"] if row["recompute"] in ("", "none", "full") else "selective"
            sets[key].setdefault((answer.trial.stack, mode, *(row[c] for c in LAYOUT)), answer)
    found = [(key, list(layouts.values())) for key, layouts in sets.items() if len(layouts) >= FEWEST]
    return [_ranking(key, members) for key, members in found]


def _ranking(key: tuple[str, ...], members: Sequence[Answer]) -> Ranking:
    devices = np.array([a.trial.devices for a in members])
    published = devices * [a.scored.published for a in members]
    predicted = devices * [a.seconds for a in members]
    check = sum(a.scored.split == "check" for a in members)
    name = f"{key[1]}, {key[2]}, context {key[3]}, batch {key[4]} ({key[0]})"
    return Ranking(name, len(members), check, spearman(published, predicted), regret(published, predicted))


def spearman(one: Array, other: Array) -> float:
    """Rank correlation (Spearman 1904): Pearson's of the ranks, ties sharing their mean rank. NaN when all tie."""
    ranks = [np.array([(x > y).sum() + ((x == y).sum() + 1) / 2 for y in x]) for x in (-one, -other)]
    centred = [r - r.mean() for r in ranks]
    scale = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / scale) if scale else float("nan")


def regret(published: Array, predicted: Array) -> float:
    """Cost of trusting the prediction: published cost of its choice over the best published cost, less 1."""
    return float(published[np.argmin(predicted)] / published.min() - 1)
