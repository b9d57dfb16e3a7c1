"""Where the errors of training lie: scored check rows by model, stack and way of sharding, the worst first."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from moesaic.plan.measured import Answer
from moesaic.plan.sheet import Value


def misses(answers: Sequence[Answer]) -> list[dict[str, Value]]:
    """A row for each kind of run with its number, mean absolute error, and least and largest error."""
    groups: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for answer in answers:
        one, trial = answer.scored, answer.trial
        if one.scored and one.split == "check" and one.predicted:
            layout = answer.layout.row(0)
            sharded = f"ZeRO-{layout['zero']}{', experts over ranks' if int(layout['ep']) > 1 else ''}"
            kind = one.partition, trial.row["model"], trial.stack, sharded
            groups[kind].append(one.predicted.p50 / one.published - 1)
    worst_first = sorted(groups.items(), key=lambda group: -np.mean(np.abs(group[1])))
    return [
        {
            "model": model,
            "partition": partition,
            "stack": stack,
            "sharding": sharding,
            "rows": len(errors),
            "mean_error_share": float(np.mean(np.abs(errors))),
            "least_error_share": min(errors),
            "largest_error_share": max(errors),
        }
        for (partition, model, stack, sharding), errors in worst_first
    ]
