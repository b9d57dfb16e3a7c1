"""Units of claims: pint's arithmetic over the short list of `units.txt`.

Not pint's own list: there T is tesla, B is bel and a FLOP does not exist.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pint.facets.plain import PlainQuantity

    Quantity: TypeAlias = PlainQuantity[float]

PARTS = ("[node]", "[rack]", "[cluster]", "[stage]")  # what a whole is shared out over in small numbers
PHYSICAL = frozenset({"[time]", "[information]", "[money]", "[energy]", "[euro]", "[mass]"})


class Units:
    """Unit names, quantities in base units (second, byte, dollar, joule, FLOP, token, ...), and their comparison."""

    def __init__(self, nouns: Iterable[str] = ()) -> None:
        """`nouns`: further things that are counted, each a dimension of its own."""
        import pint

        self._registry: Any = pint.UnitRegistry(None, cache_folder=None)
        self._errors = (pint.UndefinedUnitError, ValueError)  # the latter for `nan`
        self._known: dict[str, Quantity | None] = {}
        for line in files("moesaic.plan.audit").joinpath("units.txt").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                self._registry.define(line)
        for noun in nouns:
            if noun not in self._registry:
                self._registry.define(f"{noun} = [{noun}]")

    def number(self, value: float) -> "Quantity":
        """A pure number."""
        quantity: Quantity = self._registry.Quantity(value)
        return quantity

    def find(self, name: str) -> "Quantity | None":
        """One unit of that name (prefix and plural allowed) in base units; None when there is none.

        A capital that says nothing is forgiven in words: `Tokens`, `TeraFLOP`.
        """
        if name not in self._known:
            try:
                self._known[name] = self._registry.Quantity(1.0, self._registry.Unit(name)).to_base_units()
            except self._errors:
                plain = name[0].lower() + name[1:]
                self._known[name] = self.find(plain) if plain != name and len(name) > 3 else None
        return self._known[name]


def split(quantity: "Quantity") -> tuple[dict[str, float], dict[str, float]]:
    """Exponents of the physical dimensions and of the counted nouns."""
    dimensions = {str(k): float(str(v)) for k, v in quantity.dimensionality.items()}
    physical = {k: v for k, v in dimensions.items() if k in PHYSICAL}
    return physical, {k: v for k, v in dimensions.items() if k not in PHYSICAL}


def agree(computed: "Quantity", claimed: "Quantity") -> bool:
    """Whether two quantities may be compared: the same physical dimensions, and nouns that do not contradict.

    Nouns may be left out: GB per GPU is compared with GB, 60e9 with tokens; but tokens are no sequences. FLOP and
    parameters may be left out of what is computed even beside tokens: 6 N D with N a pure number.
    """
    (a, counted_a), (b, counted_b) = split(computed), split(claimed)
    meant = [counted_b]
    if "[flop]" in counted_b and "[flop]" not in counted_a:
        without = {k: v for k, v in counted_b.items() if k != "[flop]"}
        tokens = without.get("[token]", 0) + counted_b["[flop]"]  # as if parameters were pure numbers
        meant = [without, {k: v for k, v in (without | {"[token]": tokens}).items() if v}]
    return a == b and any(counted_a.items() <= c.items() or c.items() <= counted_a.items() for c in meant)


@cache
def spell(dimensions: tuple[tuple[str, float], ...]) -> str:
    """A unit in words, from the base units' dimensions: FLOP/token/s; `pure number` when there is none."""
    names = {"[time]": "s", "[information]": "byte", "[money]": "$", "[energy]": "J", "[flop]": "FLOP", "[gpu]": "GPU"}
    parts = [(names.get(k, k.strip("[]")), v) for k, v in dimensions]
    above = [f"{n}{'' if v == 1 else f'^{v:g}'}" for n, v in parts if v > 0]
    below = [f"/{n}{'' if v == -1 else f'^{-v:g}'}" for n, v in parts if v < 0]
    return ("*".join(above) or ("1" if below else "pure number")) + "".join(below)


def unit_of(quantity: "Quantity") -> str:
    """The base unit of a quantity in words."""
    physical, counted = split(quantity)
    return spell(tuple(sorted(counted.items()) + sorted(physical.items())))


_ASIDE = re.compile(
    r"\bof\b.*|\b([mh]fu|mbu|utili[sz]ation|faster|slower|cheaper|larger|smaller|more|less)\b|^-$|^none$", re.I
)


def variants(unit: str) -> list[str]:
    """What a unit may mean: `flops` is a count or a rate, a lone `B` bytes or billions. The likelier first."""
    text = _ASIDE.sub("", unit.replace("%", " percent ").strip()).strip()  # "% of peak", "% MFU"
    if text == "B":
        return ["byte", "billion"]
    lower = re.compile(r"\b([kMGTPEZ]|kilo|mega|giga|tera|peta|exa|zetta)?flops\b(?!-)")
    if lower.search(text):
        return [lower.sub(r"\1FLOP", text), lower.sub(r"\1FLOPS", text)]
    return [text]
