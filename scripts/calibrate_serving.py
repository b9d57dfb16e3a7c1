"""Fit the constants of serving's `profile.toml` to the `fit` rows of the published measurements.

    python scripts/calibrate_serving.py > profile.toml

Needs scipy (the `dev` extra) and about five minutes. Residuals are logarithms of predicted over published; a row far
off counts less (Cauchy loss), a constant far from its prior counts too. No constant belongs to a row or to a model.
"""

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moesaic.plan.published import rows
from moesaic.plan.routing import Numbers
from moesaic.plan.serving.profile import Profile, from_table
from moesaic.plan.serving.rows import Case, Solved, cases, in_unit, predict_both
from moesaic.plan.sheet import Z90

SPREAD = {"decode": 0.10, "first token": 0.20}  # what a good prediction misses by; the scale of the loss
UNSURE = 0.3  # weight of rows that may have used multi-token prediction

# Prior median, and its spread as a logarithm. Sources: bandwidth and product shares from aiconfigurator's system files
# and public microbenchmarks; times from CUDA-graph replays of about ten kernels a layer.
PRIORS: Mapping[str, tuple[float, float]] = {
    "shared.kv": (0.8, 0.3),
    "shared.attention": (0.4, 0.4),
    "shared.expert_hbm": (0.8, 0.3),
    "shared.expert_gemm": (0.7, 0.4),
    "shared.fp8": (0.8, 0.2),
    "shared.fp4": (0.6, 0.3),
    "shared.width": (500, 0.7),
    "shared.link": (0.5, 0.4),
    "shared.sharp": (2.0, 0.4),
    "shared.layer_s": (20e-6, 0.5),
    "shared.sparse_s": (20e-6, 0.5),
    "shared.latent_s": (10e-6, 0.5),
    "shared.step_s": (0.5e-3, 0.7),
    "shared.sequence_s": (5e-6, 0.7),
    "shared.burst": (0.15, 0.7),
    "generation.a100.hbm": (0.82, 0.07),
    "generation.a100.gemm": (0.75, 0.15),
    "generation.a100.alpha_s": (8e-6, 0.5),
    "generation.h100.hbm": (0.82, 0.07),
    "generation.h100.gemm": (0.65, 0.15),
    "generation.h100.alpha_s": (5e-6, 0.5),
    "generation.blackwell.hbm": (0.78, 0.1),
    "generation.blackwell.gemm": (0.6, 0.2),
    "generation.blackwell.alpha_s": (4e-6, 0.5),
    "engine.static.overhead": (1.5, 0.5),
    "engine.static.comm": (4.0, 0.5),
    "engine.static.regroup": (0.7, 0.3),
    "engine.static.request_s": (1e-3, 0.7),
    "engine.trtllm.overhead": (1.0, 0.3),
    "engine.trtllm.comm": (1.0, 0.3),
    "engine.trtllm.request_s": (20e-3, 1.0),
    "engine.vllm.overhead": (1.0, 0.3),
    "engine.vllm.comm": (1.0, 0.3),
    "engine.vllm.request_s": (20e-3, 1.0),
    "engine.sglang.overhead": (1.0, 0.3),
    "engine.sglang.comm": (1.0, 0.3),
    "engine.sglang.request_s": (50e-3, 1.0),
}
BOUNDS = {"hbm": 0.95, "gemm": 0.9, "kv": 1.1, "attention": 0.8, "expert_hbm": 1.1, "expert_gemm": 1.0, "fp8": 1.0,
          "fp4": 1.0, "link": 0.9, "regroup": 1.0, "sharp": 8.0}  # fmt: skip
MIXED = {"static": False, "trtllm": True, "vllm": True, "sglang": False}


def table_of(values: Mapping[str, float]) -> dict[str, Any]:
    """The nested table that `profile.from_table` reads."""
    table: dict[str, Any] = {"shared": {}, "generation": {}, "engine": {}}
    for key, value in values.items():
        *path, last = key.split(".")
        place = table
        for part in path:
            place = place.setdefault(part, {})
        place[last] = float(value)
    for name, engine in table["engine"].items():
        engine.setdefault("regroup", 0.0)
        engine["mixed"] = MIXED[name]
        engine.setdefault("sigma_decode", 0.0)
        engine.setdefault("sigma_first", 0.0)
    return table


def residuals(found: Sequence[Case], constants: Profile) -> Numbers:
    """ln(predicted / published) of each case. Rows that give both numbers are solved once."""
    solved: dict[str, Solved] = {}
    out = []
    for case in found:
        key = case.id.removesuffix(":ttft")
        if key not in solved:
            solved[key] = predict_both(case, constants)
        out.append(np.log(in_unit(case, solved[key]) / case.published))
    return np.array(out)


def weights(found: Sequence[Case]) -> Numbers:
    """The inverse spread that each case's residual is measured in."""
    return np.array([(UNSURE if c.unsure else 1.0) / SPREAD[c.partition] for c in found])


def fit(
    found: Sequence[Case], start: Mapping[str, float] | None = None, log: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Constants by key that minimise the robust residuals of the comparable cases in `found`."""
    from scipy.optimize import least_squares

    keys = list(PRIORS)
    middle = np.log([PRIORS[k][0] for k in keys])
    spread = np.array([PRIORS[k][1] for k in keys])
    high = np.array([np.log(BOUNDS.get(k.split(".")[-1], np.inf)) for k in keys])
    scale = weights(found)

    def distance(x: Numbers) -> Numbers:
        constants = from_table(table_of(dict(zip(keys, np.exp(x), strict=True))))
        r = residuals(found, constants) * scale
        robust = np.sign(r) * np.sqrt(4 * np.log1p(r**2 / 4))  # Cauchy at two spreads
        log(f"{np.sum(robust**2):.2f}")
        return np.concatenate([robust, (x - middle) / spread])

    first = middle if start is None else np.log([start[k] for k in keys])
    first = np.minimum(first, high - 0.01)
    no_floor = np.full_like(high, -np.inf)
    found_at = least_squares(
        distance,
        first,
        bounds=(no_floor, high),
        diff_step=1e-3,
        ftol=1e-3,
        xtol=1e-4,
        max_nfev=12 if start is None else 4,
    )
    return dict(zip(keys, np.exp(found_at.x).tolist(), strict=True))


def held_out(
    found: Sequence[Case], values: Mapping[str, float], log: Callable[[str], None] = lambda _: None
) -> Numbers:
    """Residuals of each case under constants that were fitted without any case of its model."""
    out = np.zeros(len(found))
    for name in sorted({c.name for c in found}):
        rest = fit([c for c in found if c.name != name], values)
        mine = [i for i, c in enumerate(found) if c.name == name]
        out[mine] = residuals([found[i] for i in mine], from_table(table_of(rest)))
        log(f"without {name}: {len(mine)} cases, median error {np.median(np.abs(np.expm1(out[mine]))):.1%}")
    return out


def with_spreads(values: Mapping[str, float], found: Sequence[Case], r: Numbers) -> dict[str, float]:
    """The constants and, for each engine, the spread of the residuals `r`: such that 80 % of them lie within its p10 to
    p90, mixed with that of all engines as if it had ten cases more."""
    out = dict(values)
    sure = np.array([not c.unsure for c in found])
    for partition, key in (("decode", "sigma_decode"), ("first token", "sigma_first")):
        here = sure & np.array([c.partition == partition for c in found])
        common = np.quantile(np.abs(r[here]), 0.8) / Z90 if here.any() else 0.0
        for engine in MIXED:
            mine = here & np.array([c.engine == engine for c in found])
            n = int(mine.sum())
            own = np.quantile(np.abs(r[mine]), 0.8) / Z90 if n else common
            out[f"engine.{engine}.{key}"] = float((n * own + 10 * common) / (n + 10))
    return out


def main() -> None:
    """Fit to the `fit` rows and print the profile."""
    found = [c for c in cases(rows()) if c.comparable and c.split == "fit"]

    def log(text: str) -> None:
        print(text, file=sys.stderr)

    values = fit(found, log=log)
    print_profile(with_spreads(values, found, held_out(found, values, log)), found)


def print_profile(values: Mapping[str, float], found: Sequence[Case]) -> None:
    """The profile as TOML with where it came from."""
    table = table_of(values)
    n = {p: sum(c.partition == p for c in found) for p in SPREAD}
    print(f"# Fitted on {datetime.date.today().isoformat()} to {n['decode']} decode and {n['first token']} first-token")
    print("# measurements (the `fit` rows of published.csv with layout, load and lengths) by")
    print("#   python scripts/calibrate_serving.py > profile.toml")
    print("# Spreads are those of models held out of the fit, one at a time.")
    print("# Meanings, units and priors: profile.py and that script. Shares of nominal figures, seconds, multipliers.")

    def section(title: str, entries: Mapping[str, Any]) -> None:
        print(f"\n[{title}]")
        for key, value in entries.items():
            print(f"{key} = {str(value).lower() if isinstance(value, bool) else format(value, '.4g')}")

    section("shared", table["shared"])
    for kind in ("generation", "engine"):
        for name, entries in table[kind].items():
            section(f"{kind}.{name}", entries)


if __name__ == "__main__":
    sys.exit(main())
