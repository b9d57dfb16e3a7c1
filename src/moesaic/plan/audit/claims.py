"""A file of claims: read, checked field by field, and every expression in it evaluated."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import PlanError
from moesaic.plan.audit.expressions import ExpressionError, Named, Result, evaluate
from moesaic.plan.audit.units import Units, variants

if TYPE_CHECKING:
    from moesaic.plan.audit.units import Quantity

KINDS = ("value", "divides", "ratio", "bound")
LARGEST = 4_000_000  # bytes of a file
_TEXTS = (
    "text",
    "quantity",
    "unit",
    "kind",
    "bound",
    "whole",
    "part",
    "reason",
    "expected",
    "note",
    "differs",
    "topic",
)
_FIELDS = {"id", "claimed", "readings", "tolerance", *_TEXTS}


@dataclass(frozen=True)
class Reading:
    """One way to take a claim: what it means, its expression, and the value in base units."""

    name: str
    expression: str
    result: Result


@dataclass(frozen=True)
class Claim:
    """A claim with its values in base units. `claimed`: (lowest, highest) in `unit`, equal unless it is a range."""

    id: str
    text: str
    quantity: str = ""
    unit: str = ""
    kind: str = "value"
    claimed: tuple[float, float] | None = None
    units: "Sequence[Quantity]" = ()  # one unit of the claim; several where the word is ambiguous
    readings: Sequence[Reading] = ()
    bound: str = ""  # "upper" or "lower", stated
    whole: "Quantity | None" = None  # the claim is one of equal parts of this
    part: str = "part"
    tolerance: float | None = None
    reason: str = ""
    topic: str = ""
    expected: str = ""
    note: str = ""
    differs: str = ""
    borrowed: frozenset[str] = frozenset()  # names in its readings that the recipe and the devices gave


@dataclass(frozen=True)
class Claims:
    """All claims of a file."""

    title: str
    claims: Sequence[Claim]


def shipped() -> str:
    """The text of the claims file that comes with the package."""
    return files("moesaic.plan.audit").joinpath("claims.toml").read_text(encoding="utf-8")


def load(path: Path | str | None) -> dict[str, Any]:
    """The table of a claims file; the shipped one for None. Raises PlanError."""
    if path is None:
        return tomllib.loads(shipped())
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}; give a TOML file of claims") from error
    if len(data) > LARGEST:
        raise PlanError(f"{path}: over {LARGEST // 1_000_000} MB; split it")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path} is not TOML: {error}") from error


def read(table: Mapping[str, Any], names: Mapping[str, str], title: str = "claims") -> Claims:
    """Check a table of claims and evaluate its expressions; `names` are there beside its own [given].

    Raises PlanError that names the claim and the field.
    """
    unknown = set(table) - {"title", "claims", "given", "nouns", "recipe"}
    if unknown:
        raise PlanError(f"{title}: unknown key {sorted(unknown)[0]}; use title, recipe, nouns, given, claims")
    rows, nouns, own = table.get("claims"), table.get("nouns", []), table.get("given", {})
    if not isinstance(rows, list) or not rows:
        raise PlanError(f"{title}: no claims; write one [[claims]] table per claim")
    if not isinstance(nouns, list) or not all(isinstance(n, str) and n.isidentifier() and n.isascii() for n in nouns):
        raise PlanError(f'{title}: nouns must be a list of words, for example nouns = ["video"]')
    if not isinstance(own, dict):
        raise PlanError(f"{title}: given must be a table of names and values")
    reader = _Reader(title, Units(nouns), names)
    for name, value in own.items():
        reader.give(name, value)
    claims = [reader.claim(i, row) for i, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise PlanError(f"{title}: claim {claim.id}: id is used twice")
        seen.add(claim.id)
    return Claims(str(table.get("title", title)), claims)


class _Reader:
    def __init__(self, title: str, units: Units, names: Mapping[str, str]) -> None:
        self.title, self.units = title, units
        self.names = dict(names)  # not yet evaluated
        self.given: dict[str, Named] = {}
        self.used: set[str] = set()

    def give(self, name: str, value: object) -> None:
        """One quantity of [given]; it may speak of those above it."""
        if not (name.isidentifier() and name.isascii()):
            raise PlanError(f"{self.title}: given {name}: not a name; use letters, digits and _")
        result = self.evaluate(value, f"given {name}")
        self.names.pop(name, None)
        self.used.discard(name)
        self.given[name] = Named(result.quantity, result.bare)

    def evaluate(self, value: object, where: str) -> Result:
        """The value of an expression or a number. Raises PlanError that says `where`."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise PlanError(f'{self.title}: {where}: give a number or text such as "13T tokens"')
        try:
            text = value if isinstance(value, str) else repr(float(value))
        except OverflowError as error:
            raise PlanError(f"{self.title}: {where}: too large a number") from error
        try:
            for name in self._spoken(text):  # names of the recipe only when they are needed
                ready = evaluate(self.names[name], self.units, {})
                self.given[name] = Named(ready.quantity, ready.bare)
                del self.names[name]
                self.used.add(name)
            return evaluate(text, self.units, self.given)
        except ExpressionError as error:
            raise PlanError(f"{self.title}: {where}: {error}") from error

    def _spoken(self, text: str) -> list[str]:
        word = "".join(c if c.isalnum() or c == "_" else " " for c in text)
        return [w for w in dict.fromkeys(word.split()) if w in self.names]

    def claim(self, number: int, row: object) -> Claim:
        """One checked claim."""
        if not isinstance(row, dict):
            raise PlanError(f"{self.title}: claim number {number}: must be a table")
        where = f"claim {row.get('id', f'number {number}')}"

        def fail(name: str, what: str) -> PlanError:
            return PlanError(f"{self.title}: {where}: {name}: {what}")

        if unknown := sorted(set(row) - _FIELDS):
            raise fail(unknown[0], f"unknown field; known: {', '.join(sorted(_FIELDS))}")
        if isinstance(row.get("id"), bool) or not isinstance(row.get("id"), (str, int)):
            raise fail("id", "missing; give a number or a word")
        for name in _TEXTS:
            if not isinstance(row.get(name, ""), str):
                raise fail(name, "must be text")
        if not row.get("text", "").strip():
            raise fail("text", "missing; quote the claim")
        kind, bound = row.get("kind", "value"), row.get("bound", "")
        if kind not in KINDS:
            raise fail("kind", f"'{kind}' is none of {', '.join(KINDS)}")
        if bound not in ("", "upper", "lower"):
            raise fail("bound", f"'{bound}' is neither upper nor lower")
        tolerance = row.get("tolerance")
        if tolerance is not None:
            if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
                raise fail("tolerance", "must be a share from 0 to 1, for example 0.01")
            if not row.get("reason", "").strip():
                raise fail("reason", "missing; a tolerance of its own needs one")
        readings = self._readings(row, where, fail)
        claimed, sign = self._claimed(row, where, fail, bool(readings))
        whole = self.evaluate(row["whole"], f"{where}: whole").quantity if row.get("whole") else None
        texts = {n: row.get(n, "") for n in _TEXTS if n not in ("kind", "bound", "whole", "part")}
        return Claim(
            id=str(row["id"]), kind=kind, bound=bound or sign, claimed=claimed, readings=readings, whole=whole,
            units=[self._unit(v, where) for v in variants(row.get("unit", ""))],
            borrowed=frozenset(n for r in readings for n in r.result.names) & self.used,
            part=row.get("part", "part"), tolerance=tolerance, **texts,
        )  # fmt: skip

    def _unit(self, text: str, where: str) -> "Quantity":
        try:  # without [given]: a quantity may well be called `tokens`
            unit = evaluate(text or "1", self.units, {}).quantity
        except ExpressionError as error:
            raise PlanError(f"{self.title}: {where}: unit: {error}") from error
        if not unit.magnitude > 0:
            raise PlanError(f"{self.title}: {where}: unit: '{text}' is not positive")
        return unit

    def _readings(self, row: dict[str, Any], where: str, fail: Any) -> list[Reading]:
        given = row.get("readings", [])
        if not isinstance(given, list):
            raise fail("readings", "must be a list of {name, expression}")
        readings = []
        for i, one in enumerate(given, 1):
            if not isinstance(one, dict) or set(one) - {"name", "expression"}:
                raise fail("readings", f"number {i} must be {{name, expression}}")
            name, expression = one.get("name", ""), one.get("expression", "")
            if not isinstance(name, str):
                raise fail("readings", f"the name of number {i} must be text")
            if expression == "":
                continue  # said in words only
            label = name or f"reading {i}"
            result = self.evaluate(expression, f"{where}: expression '{label}'")
            readings.append(Reading(label, str(expression), result))
        return readings

    def _claimed(
        self, row: dict[str, Any], where: str, fail: Any, needed: bool
    ) -> tuple[tuple[float, float] | None, str]:
        """The claimed range, and which side of it a leading < or > bounds."""
        value = row.get("claimed")
        if value is None or value == "":
            if needed:
                raise fail("claimed", "missing; give the claimed number")
            return None, ""
        ends, sign = value if isinstance(value, list) else [value], ""
        if len(ends) not in (1, 2):
            raise fail("claimed", "give one number or [lowest, highest]")
        numbers = []
        for end in ends:
            if isinstance(end, str):
                bare = end.strip().lstrip("~≈<>≤≥= ")
                sign = {"<": "upper", "≤": "upper", ">": "lower", "≥": "lower"}.get(end.strip()[:1], sign)
                result = self.evaluate(bare, f"{where}: claimed")
                if not result.bare:
                    raise fail("claimed", f"'{end}' has a unit; give the number here and its unit under unit")
                numbers.append(float(result.quantity.magnitude))
            else:
                numbers.append(float(self.evaluate(end, f"{where}: claimed").quantity.magnitude))
        return (min(numbers), max(numbers)), sign
