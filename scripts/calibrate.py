"""Calibrate the shipped training stacks on the `fit` rows of the published measurements, and write stacks.toml again.

    python scripts/calibrate.py            # about a minute
Constants start from scripts/stacks.prior.toml. Rows of split `check` are never read.
"""

import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import numpy as np

from moesaic.plan.fit import Free, fit, log_ratios, residual_sigma
from moesaic.plan.published import HALF, Trial, question, rows
from moesaic.recipe.show import table_to_toml

FILE = Path(__file__).parents[1] / "src/moesaic/plan/stacks.toml"
PRIORS = Path(__file__).parent / "stacks.prior.toml"
HEAD = "# Written by scripts/calibrate.py from scripts/stacks.prior.toml and {} rows of split `fit`.\n\n"
COMMON = {
    "low_precision": 0.2,
    "memory": 0.1,
    "domain": 0.3,
    "network": 0.3,
    "elementwise": 0.4,
    "scores": 0.3,
    "layer_us": 0.5,
    "sparse_us": 0.5,
    "sync_us": 1.0,
    "step_ms": 0.7,
    "latency_us": 0.5,
    "exposed_tp": 0.3,
    "exposed_ep": 0.3,
    "exposed_pp": 0.7,
    "exposed_dp": 0.7,
    "exposed_zero3": 0.7,
}
OWN = {
    "megatron-2021": {"exposed_dp": 0.5, "exposed_tp": 0.3, "exposed_zero3": 0.7},
    "megatron-core": {"exposed_tp": 0.3},
    "megatron-bridge": {"pace": 0.2, "sparse_us": 0.5},
    "fsdp": {"pace": 0.2},
    "research": {"pace": 0.2, "layer_us": 0.7},
}


def free_constants() -> list[Free]:
    """Every constant that moves, with what its prior allows."""
    generations = ("a100", "h100", "blackwell")
    efficiencies = [Free(("common", "gemm", g), 0.15) for g in generations]
    efficiencies += [Free(("common", "attention", g), 0.25) for g in generations]
    common = [Free(("common", name), sd) for name, sd in COMMON.items()]
    return efficiencies + common + [Free(("stack", s, n), sd) for s, own in OWN.items() for n, sd in own.items()]


def runs() -> list[Trial]:
    """Runs of split `fit` with a published layout, down to 8 bit."""
    used = (r for r in rows() if r["category"] == "train" and r["split"] == "fit")
    asked = (question(r) for r in used if r["precision"] in (*HALF, "fp8", "mxfp8"))
    return [t for t in asked if isinstance(t, Trial)]


def main() -> None:
    """Calibrate, say what moved, write the file."""
    trials = runs()
    before = tomllib.loads(PRIORS.read_text(encoding="utf-8"))
    free = free_constants()
    after = fit(before, trials, free)
    for f in free:
        print(f"{'.'.join(f.path):44} {f.read(before):8.4g} -> {f.read(after):8.4g}")
    ratios = log_ratios(after, trials)
    seen: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for t, ratio in zip(trials, ratios, strict=True):
        if t.row["precision"] in HALF:
            seen[t.stack, t.shape.n_experts > 1].append(ratio)
    for name, own in after["stack"].items():
        for sparse, key in ((False, "sigma"), (True, "sigma_sparse")):
            prior = own.get(key, after["common"][key])
            own[key] = float(f"{residual_sigma(np.array(seen[name, sparse]), prior):.2g}")
            print(f"{name:20} {key:14} {own[key]:.3f} from {len(seen[name, sparse])} rows")
    FILE.write_text(HEAD.format(len(trials)) + table_to_toml(after), encoding="utf-8")
    for sparse in (False, True):
        errors = np.abs(np.expm1([r for (_, s), rs in seen.items() for r in rs if s == sparse]))
        print(
            f"{'sparse' if sparse else 'dense'}: {len(errors)} rows in 16 bit, mean error {100 * errors.mean():.1f} %"
        )


if __name__ == "__main__":
    sys.exit(main())
