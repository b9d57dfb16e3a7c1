"""Stack profiles: what a training stack does, and how much of the hardware it reaches. From `stacks.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moesaic.errors import PlanError


@dataclass(frozen=True)
class Stack:
    """A training stack. Efficiencies are fractions of nominal rates; `exposed_*` is the share that nothing hides."""

    name: str
    label: str
    source: str
    flash: bool  # attention without scores in memory (Dao et al. 2022); else unfused softmax, as before 2022
    sequence_parallel: bool  # norms and residuals split over tensor ranks (Korthikanti et al. 2022)
    dropout: bool
    rails: bool  # collectives use the network cards of all members in a node
    gemm: Mapping[str, float]  # by generation of device
    attention: Mapping[str, float]  # by generation of device
    low_precision: float  # of `gemm`, below 16 bit: casts, scales, and products that stay in bf16
    memory: float
    domain: float
    network: float
    elementwise: float  # traffic of norms, residuals and activations over the least possible
    exposed_tp: float
    exposed_ep: float
    exposed_dp: float
    exposed_pp: float
    exposed_zero3: float
    scores: float  # times that unfused attention reads or writes its scores
    layer_us: float  # host time of a dense layer's forward; hides behind the device unless it is longer
    sparse_us: float  # the same of a sparse layer
    sync_us: float  # stalls of a sparse layer's forward that nothing hides: counts must reach the host
    step_ms: float  # data, clipping, optimizer launches of one step
    latency_us: float  # of one collective
    pace: float  # whole steps against this model of them: 1 is as modelled, 1.1 is 10 % slower
    sigma: float  # standard deviation of log(published / predicted) of dense models
    sigma_sparse: float  # the same with experts

    def rate(self, table: Mapping[str, float], generation: str) -> float:
        """An efficiency for a generation; one that was never calibrated takes the mean of the others."""
        return table.get(generation, sum(table.values()) / len(table))


@cache
def stacks(path: Path | None = None) -> Mapping[str, Stack]:
    """All profiles by name: the shipped ones, or those of a file from `moesaic plan fit`. Raises PlanError."""
    if path is None:
        text = files("moesaic.plan").joinpath("stacks.toml").read_text(encoding="utf-8")
        return read_stacks(tomllib.loads(text))
    try:
        return read_stacks(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path}: no file of stack profiles ({error}); `moesaic plan fit` writes one") from error


def read_stacks(table: Mapping[str, Any]) -> dict[str, Stack]:
    """Profiles from a parsed file: `[common]` holds what all share, `[stack.NAME]` what one has of its own."""
    return {name: Stack(**{"name": name, **table["common"], **own}) for name, own in table["stack"].items()}


def stack(name: str, path: Path | None = None) -> Stack:
    """The profile of that name, from a file if given. Raises PlanError that lists the known ones."""
    known = stacks(path)
    if name not in known:
        raise PlanError(f"no stack '{name}'; known: {', '.join(known)}")
    return known[name]
