"""Units of claims: pint's arithmetic over the short list of `units.txt`.

Not pint's own list: there T is tesla, B is bel and a FLOP does not exist.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pint

PHYSICAL = frozenset({"[time]", "[information]", "[money]", "[energy]", "[euro]"})


class Units:
    """Unit names, quantities in base units (second, byte, dollar, joule, FLOP, token, ...), and their comparison."""

    def __init__(self, nouns: Iterable[str] = ()) -> None:
        """`nouns`: further things that are counted, each a dimension of its own."""
        import pint

        self._registry: Any = pint.UnitRegistry(None, cache_folder=None)
        self._error = pint.UndefinedUnitError
        self._known: dict[str, pint.Quantity[float] | None] = {}
        for line in files("moesaic.plan.audit").joinpath("units.txt").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                self._registry.define(line)
        for noun in nouns:
            if noun not in self._registry:
                self._registry.define(f"{noun} = [{noun}]")

    def number(self, value: float) -> "pint.Quantity[float]":
        """A pure number."""
        quantity: pint.Quantity[float] = self._registry.Quantity(value)
        return quantity

    def find(self, name: str) -> "pint.Quantity[float] | None":
        """One unit of that name (prefix and plural allowed) in base units; None when there is none."""
        if name not in self._known:
            try:
                self._known[name] = self._registry.Quantity(1.0, self._registry.Unit(name)).to_base_units()
            except self._error:
                self._known[name] = None
        return self._known[name]


def split(quantity: "pint.Quantity[float]") -> tuple[dict[str, float], dict[str, float]]:
    """Exponents of the physical dimensions and of the counted nouns."""
    dimensions = {str(k): float(v) for k, v in quantity.dimensionality.items()}
    physical = {k: v for k, v in dimensions.items() if k in PHYSICAL}
    return physical, {k: v for k, v in dimensions.items() if k not in PHYSICAL}


def agree(left: "pint.Quantity[float]", right: "pint.Quantity[float]") -> bool:
    """Whether two quantities may be compared: the same physical dimensions, and nouns that do not contradict.

    Nouns may be left out: GB per GPU is compared with GB, 60e9 with tokens; but tokens are no sequences.
    """
    (a, counted_a), (b, counted_b) = split(left), split(right)
    return a == b and (counted_a.items() <= counted_b.items() or counted_b.items() <= counted_a.items())


@cache
def spell(dimensions: tuple[tuple[str, float], ...]) -> str:
    """A unit in words, from the base units' dimensions: FLOP/token/s; `pure number` when there is none."""
    names = {"[time]": "s", "[information]": "byte", "[money]": "$", "[energy]": "J", "[flop]": "FLOP", "[gpu]": "GPU"}
    parts = [(names.get(k, k.strip("[]")), v) for k, v in dimensions]
    above = [f"{n}{'' if v == 1 else f'^{v:g}'}" for n, v in parts if v > 0]
    below = [f"/{n}{'' if v == -1 else f'^{-v:g}'}" for n, v in parts if v < 0]
    return ("*".join(above) or ("1" if below else "pure number")) + "".join(below)


def unit_of(quantity: "pint.Quantity[float]") -> str:
    """The base unit of a quantity in words."""
    physical, counted = split(quantity)
    return spell(tuple(sorted(counted.items()) + sorted(physical.items())))


def variants(unit: str) -> list[str]:
    """What a unit may mean: `flops` is a count or a rate, a lone `B` bytes or billions. The likelier first."""
    text = re.sub(r"\bof\b.*", "", unit.replace("%", " percent ")).strip()  # "% of peak"
    if text == "B":
        return ["byte", "billion"]
    lower = re.compile(r"\b([kMGTPEZ]?)flops\b")
    if lower.search(text):
        return [lower.sub(r"\1FLOP", text), lower.sub(r"\1FLOPS", text)]
    return [text]
