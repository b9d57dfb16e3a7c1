"""Fitted constants: how far real kernels and engines stay behind the datasheet. From `profile.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moesaic.errors import PlanError


@dataclass(frozen=True)
class Generation:
    """What a generation of devices reaches."""

    hbm: float  # share of the nominal memory bandwidth that streaming weights reaches
    gemm: float  # share of the nominal dense FLOP/s that a large, wide 16-bit product reaches
    alpha_s: float  # latency of one collective per doubling of its ranks


@dataclass(frozen=True)
class Engine:
    """What a serving engine adds. `mixed`: prompt chunks share their pass with decoding sequences."""

    overhead: float  # multiplies the fixed times of a layer
    comm: float  # multiplies `alpha_s`
    regroup: float  # 0: heads of a group share their reads of the cache, 1: each reads it again
    request_s: float  # from arrival to the first pass, and from its end to the first byte
    mixed: bool
    sigma_decode: float  # residual of the logarithm, from the fit
    sigma_first: float


@dataclass(frozen=True)
class Profile:
    """All constants. Shares and multipliers are plain numbers, times in seconds."""

    kv: float  # share of `hbm` that attention kernels reach on the cache
    attention: float  # share of nominal FLOP/s that attention kernels reach
    expert_hbm: float  # share of `hbm` that grouped products reach on expert weights
    expert_gemm: float  # share of `gemm` that grouped products reach
    fp8: float  # share of `gemm` that 8-bit products reach
    fp4: float  # share of `gemm` that 4-bit products reach
    width: float  # inner width on one device at which products reach half of `gemm`
    link: float  # share of the nominal link bandwidth that collectives reach
    sharp: float  # exponent that joins memory and arithmetic time: 1 adds them, infinity takes the larger
    layer_s: float  # fixed time of a layer's kernels
    sparse_s: float  # the same for router, permutation and grouped products
    latent_s: float  # the same for latent attention's extra products
    step_s: float  # host time of a step
    sequence_s: float  # host time of a step for each sequence: sampling, detokenising
    burst: float  # share of the other prompts that are ahead in the queue when a closed loop of clients starts together
    generations: Mapping[str, Generation]
    engines: Mapping[str, Engine]

    def generation(self, name: str) -> Generation:
        """Constants of a generation; an unfitted one borrows those of h100."""
        return self.generations.get(name, self.generations["h100"])

    def engine(self, name: str) -> Engine:
        """Constants of an engine. Raises PlanError that lists the known ones."""
        if name not in self.engines:
            raise PlanError(f"no engine '{name}'; use one of {', '.join(self.engines)}")
        return self.engines[name]


def from_table(table: Mapping[str, Any]) -> Profile:
    """A profile from a parsed TOML table with `shared`, `generation.NAME` and `engine.NAME`."""
    generations = {n: Generation(**v) for n, v in table["generation"].items()}
    engines = {n: Engine(**v) for n, v in table["engine"].items()}
    return Profile(**table["shared"], generations=generations, engines=engines)


@cache
def profile() -> Profile:
    """The shipped profile."""
    text = files("moesaic.plan.serving").joinpath("profile.toml").read_text(encoding="utf-8")
    return from_table(tomllib.loads(text))
