"""Accelerators and the links between them: datasheet figures with their sources, from `devices.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from moesaic.errors import PlanError

TRAINING = ("bf16", "fp16", "fp8", "fp4")  # precisions that matrix products of training use; int8 serves only
ALIASES = {"mxfp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4"}


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are nominal and dense (no sparsity); links count one direction, per device."""

    name: str
    label: str
    generation: str  # shares calibrated efficiencies: v100, a100, h100, blackwell, rtx, mi300, tpu
    memory_gb: float  # 1e9 bytes
    memory_tb_s: float
    tflops: Mapping[str, float]  # by precision: bf16 (fp16 on a V100), fp8, int8, fp4
    domain: int  # devices joined by the fast link: 8 in an HGX node, 72 in an NVL72 rack, a pod on a TPU
    domain_gb_s: float
    network_gb_s: float  # scale-out network
    watts: float  # of the device
    host_watts: float  # share of the node around it: processors, fans, network cards
    source: str
    aliases: tuple[str, ...] = ()  # other names in use

    def peak(self, precision: str) -> float:
        """FLOP/s at a precision; fp16 is as fast as bf16. Raises PlanError for one that the device lacks."""
        key = ALIASES.get(precision, precision)
        if key == "fp16" and key not in self.tflops:
            key = "bf16"
        if key not in self.tflops:
            raise PlanError(f"{self.label} has no {precision}; use one of {', '.join(self.tflops)}")
        return self.tflops[key] * 1e12

    def must_train(self, precision: str) -> None:
        """Raises PlanError unless one trains in `precision` on the device."""
        able = [name for name in TRAINING if name in self.tflops or (name == "fp16" and "bf16" in self.tflops)]
        if ALIASES.get(precision, precision) in able:
            return
        why = (
            f"{self.label} has no {precision}"
            if ALIASES.get(precision, precision) in TRAINING
            else (f"{precision} is no precision to train in")
        )
        raise PlanError(f"--precision: {why}; on {self.label} use {' or '.join(able)}")


@cache
def devices() -> Mapping[str, Device]:
    """All shipped devices by name."""
    table = tomllib.loads(files("moesaic.plan").joinpath("devices.toml").read_text(encoding="utf-8"))
    return {
        name: Device(name=name, aliases=tuple(values.pop("aliases", ())), **values) for name, values in table.items()
    }


@cache
def _by_any_name() -> Mapping[str, Device]:
    return {name.lower(): d for d in devices().values() for name in (d.name, *d.aliases)}


def device(name: str) -> Device:
    """The device of that name or alias (`a100-80`, `H100-80G-SXM`, ...) in any case.

    Raises PlanError that lists the known ones.
    """
    found = _by_any_name().get(name.strip().lower())
    if found is None:
        raise PlanError(f"no device '{name}'; known: {', '.join(devices())}")
    return found
