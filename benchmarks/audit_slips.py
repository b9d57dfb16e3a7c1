"""How many planted slips the audit finds, and how many true claims it blames: the goals are >= 95 % and <= 2 %.

    python benchmarks/audit_slips.py [--claims 10_000] [--seed 0]

Claims are random and true (17 kinds of statement about training, serving, memory, money and energy, over many orders of
magnitude, rounded to 2 or 3 digits); half of them then suffer one listed slip. Found means with the right factor.
Blamed means any verdict other than ok. The true values are computed apart from the audit's own evaluator.
"""

import argparse
import json
import time
from collections import Counter
from typing import Any

from machine import describe, keep
from planted_claims import found, planted

from moesaic.plan.audit import audit


def measure(seed: int, count: int) -> dict[str, Any]:
    """Plant, audit, count."""
    rows = planted(seed, count)
    began = time.perf_counter()
    verdicts = audit({"claims": [r.claim for r in rows]})
    seconds = time.perf_counter() - began
    slips: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    true = blamed = 0
    misses = []
    for row, verdict in zip(rows, verdicts, strict=True):
        if not row.slip:
            true += 1
            blamed += verdict.verdict != "ok"
            continue
        slips[row.slip] += 1
        if found(row, verdict.verdict, verdict.slip, verdict.factor):
            hits[row.slip] += 1
        else:
            misses.append({"planted": row.slip, "verdict": verdict.label} | row.claim)
    return {
        "claims": count,
        "seed": seed,
        "slips": sum(slips.values()),
        "slips_found_percent": 100 * sum(hits.values()) / max(1, sum(slips.values())),
        "true_claims": true,
        "false_alarms_percent": 100 * blamed / max(1, true),
        "found_percent_by_slip": {k: 100 * hits[k] / slips[k] for k in sorted(slips)},
        "seconds": seconds,
        "claims_per_second": count / seconds,
        "first_misses": misses[:5],
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claims", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = measure(arguments.seed, arguments.claims) | {"machine": describe()}
    print(json.dumps(result, indent=1))
    print(keep("audit_slips", result))


if __name__ == "__main__":
    main()
