"""Arithmetic with units, read safely: `6 * N * 13T tokens`, `$1/GPU-hour * 25,000 GPUs * 95 days`.

The text becomes a Python expression of numbers, names, + - * / ** and a few functions, is parsed by `ast`, and the tree
is walked here; nothing is ever run as code. The file may be a stranger's: length, exponents and results are bounded.
A number or a name beside a name is a product that binds closer than `/`: `$ / 1M tokens` is dollars per million. Beside
a number a name is a unit if there is one of that name; standing alone it is the given quantity first.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moesaic.plan.audit.units import Units, split, unit_of

if TYPE_CHECKING:
    from moesaic.plan.audit.units import Quantity

LONGEST = 500  # characters of an expression
_UNIT = "unit__"  # before a name that can only be a unit
_SCALE = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SPELLED = {"$": "dollar", "%": "percent", "¢": "cent", "€": "euro", "×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?P<suffix>[kKMBT](?![A-Za-z0-9_]))?"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*|[$%¢€])|(?P<op>\*\*|[-+*/(),×·÷−^]))"
)
_GROUPS = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?!\w)")
_RATE = re.compile(r"(?:FLOPS|FLOPs|FLOP|flops|flop)-(days?|hours?)\b")  # PFLOP-days are at a rate of so many a second
_DEVICE = re.compile(
    r"\b(?:A100|V100|H100|H200|H20|H800|B200|B300|GB200|GB300|MI300X|MI355X|TPU)\s+(?=(?:GPU|chip)s?\b)"
)
FUNCTIONS = ("abs", "ceil", "exp", "floor", "log", "log10", "log2", "max", "min", "round", "sqrt")


class ExpressionError(ValueError):
    """An expression that has no value; says why."""


@dataclass(frozen=True)
class Named:
    """A given quantity. `bare`: it was written without any unit."""

    quantity: "Quantity"
    bare: bool


@dataclass(frozen=True)
class Result:
    """The value of an expression in base units. `names`: the given names that it spoke of."""

    quantity: "Quantity"
    bare: bool
    above: "Quantity | None"  # what stands above the line, if the outermost operation is a division
    names: frozenset[str]


@dataclass
class _Token:
    kind: str
    text: str
    spaced: bool
    value: float = 0.0


def evaluate(text: str, units: Units, given: Mapping[str, Named]) -> Result:
    """The value of `text`; names are looked up in `given`, then among the units. Raises ExpressionError."""
    source = _python(text, units, given)
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"'{_short(text)}' is not arithmetic") from error
    walker = _Walker(units, given)
    try:
        quantity = walker.value(tree)
    except (ZeroDivisionError, OverflowError) as error:
        raise ExpressionError(f"'{_short(text)}' divides by zero or overflows") from error
    if not math.isfinite(quantity.magnitude):
        raise ExpressionError(f"'{_short(text)}' is not a finite number")
    above = walker.value(tree.left) if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div) else None
    return Result(quantity, walker.bare, above, frozenset(walker.names))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tokens(text: str) -> list[_Token]:
    if len(text) > LONGEST:
        raise ExpressionError(f"longer than {LONGEST} characters; name parts of it under [given]")
    text = _DEVICE.sub("", _RATE.sub(r"FLOP/s-\1", text.replace("µ", "u").strip()))
    if "(" not in text:  # commas separate arguments there
        text = _GROUPS.sub(lambda m: m[0].replace(",", ""), text)
    out: list[_Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ExpressionError(f"cannot read '{_short(text[at:].strip())}'")
        spaced = found[0][0].isspace()
        if found["number"]:
            value = float(found["number"].replace("_", "")) * _SCALE.get(found["suffix"] or "", 1.0)
            if not math.isfinite(value):
                raise ExpressionError(f"{found['number']} is too large")
            out.append(_Token("number", repr(value), spaced, value))
        elif found["name"] == "per":
            out.append(_Token("op", "/", spaced))
        else:
            word = found["name"] or found["op"]
            out.append(_Token("name" if found["name"] else "op", _SPELLED.get(word, word), spaced))
        at = found.end()
    return out


def _python(text: str, units: Units, given: Mapping[str, Named]) -> str:
    """`text` as Python: products by juxtaposition and hyphens (`GPU-hours`) written out and put in brackets."""
    tokens = _tokens(text)
    end = _Token("end", "", False)

    def at(i: int) -> _Token:
        return tokens[i] if 0 <= i < len(tokens) else end

    def operand(i: int) -> bool:
        return at(i).kind == "number" or (at(i).kind == "name" and at(i + 1).text != "(")

    def is_unit(i: int) -> bool:
        return operand(i) and at(i).kind == "name" and at(i).text not in given and units.find(at(i).text) is not None

    for i, token in enumerate(tokens):  # 2 x 3
        if token.text == "x" and "x" not in given and i and (operand(i + 1) or at(i + 1).text == "("):
            tokens[i] = _Token("op", "*", True)
    out: list[str] = []
    opened: list[int] = []  # where in `out` the open brackets stand
    closed = 0  # and where the last closed one began, with the name of its function
    i = 0
    while i < len(tokens):
        if not operand(i):
            if at(i).text == "(":
                opened.append(len(out) - 1 if at(i - 1).kind == "name" else len(out))
            elif at(i).text == ")" and opened:
                closed = opened.pop()
            out.append(at(i).text)
            i += 1
            continue
        if at(i - 1).text == ")":  # (2 + 4) bytes
            out[closed] = f"({out[closed]}"
        group: list[str] = []
        below = bool(out) and out[-1] == "/"
        while operand(i):
            token = at(i)
            if token.kind == "name" and token.text in _SCALE and token.text not in given and operand(i + 1):
                group.append(repr(_SCALE[token.text]))  # T tokens
            elif token.text in ("k", "K", "M", "T") and token.text not in given:
                group.append(repr(_SCALE[token.text]))
            elif token.kind == "name" and (group or operand(i + 1)) and units.find(token.text) is not None:
                group.append(_UNIT + token.text)  # 60M tokens, even where `tokens` is given
            else:
                group.append(token.text)
            i += 1
            if at(i).text == "**" and group and (operand(i + 1) or (at(i + 1).text == "-" and operand(i + 2))):
                signed = at(i + 1).text == "-"
                group[-1] += f"**{'-' if signed else ''}{at(i + 2 if signed else i + 1).text}"
                i += 3 if signed else 2
            glued = at(i).text == "-" and not at(i).spaced and not at(i + 1).spaced
            if glued and is_unit(i - 1) and is_unit(i + 1):
                if below and len(group) == 1 and at(i - 1).text in ("s", "sec", "second"):
                    break  # PFLOP/s-days: the day is not below the line
                i += 1
        product = "*".join(group)
        if out and out[-1] == ")":
            out.append(f"* {product})")
        else:
            out.append(product if len(group) == 1 else f"({product})")
        if at(i).text == "-" and not at(i).spaced and is_unit(i - 1) and is_unit(i + 1) and not at(i + 1).spaced:
            out.append("*")
            i += 1
    return " ".join(out)


@dataclass
class _Walker:
    units: Units
    given: Mapping[str, Named]
    bare: bool = True
    names: set[str] = field(default_factory=set)

    def value(self, node: ast.AST) -> "Quantity":
        match node:
            case ast.Constant(value=bool() | str() | bytes() | complex() | None):
                raise ExpressionError("only numbers, names and arithmetic are allowed")
            case ast.Constant(value=int() | float() as number):
                return self.units.number(float(number))
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self.value(inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self.value(inner)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(self.value(left), op, self.value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self.value(a) for a in arguments])
        raise ExpressionError("only numbers, names, + - * / ** and functions are allowed")

    def _name(self, name: str) -> "Quantity":
        name, unit = name.removeprefix(_UNIT), name.startswith(_UNIT)
        if name in self.given and not unit:
            self.names.add(name)
            self.bare &= self.given[name].bare
            return self.given[name].quantity
        if name == "x":
            return self.units.number(1.0)
        if re.fullmatch(r"[kMGTPEZ]?flops", name):
            raise ExpressionError(f"{name} can be a count or a rate: write {name[:-5]}FLOP or {name[:-5]}FLOP/s")
        found = self.units.find(name)
        if found is None:
            raise ExpressionError(f"no quantity or unit '{name}'; define it under [given], or count it: nouns = [...]")
        self.bare = False
        return found

    def _binary(self, left: "Quantity", op: ast.operator, right: "Quantity") -> "Quantity":
        match op:
            case ast.Mult():
                product: Quantity = left * right
                return product
            case ast.Div():
                quotient: Quantity = left / right
                return quotient
            case ast.Add():
                return self._sum(left, right, 1)
            case ast.Sub():
                return self._sum(left, right, -1)
            case ast.Pow():
                power = self._pure(right, "an exponent")
                if abs(power) > (8 if split(left) != ({}, {}) else 1e4):
                    raise ExpressionError(f"exponent {power:g} is too large")
                return self._power(left, power)
        raise ExpressionError("only + - * / ** are allowed")

    def _sum(self, left: "Quantity", right: "Quantity", sign: int) -> "Quantity":
        left, right = self._like(left, right)
        total: Quantity = left + sign * right
        return total

    def _like(self, left: "Quantity", right: "Quantity") -> tuple["Quantity", "Quantity"]:
        """Both in one unit; a pure number beside a counted noun counts it (`16 experts - 1`)."""
        if left.units != right.units:
            (a, counted_a), (b, counted_b) = split(left), split(right)
            if a or b or (counted_a and counted_b):
                raise ExpressionError(f"cannot add or compare {unit_of(left)} and {unit_of(right)}")
            unit = right.units if counted_b else left.units
            left, right = left.magnitude * (1 * unit), right.magnitude * (1 * unit)
        return left, right

    def _power(self, base: "Quantity", power: float) -> "Quantity":
        if base.magnitude < 0 and not power.is_integer():
            raise ExpressionError(f"a negative number to the power {power:g} has no value")
        raised: Quantity = base**power
        return raised

    def _pure(self, quantity: "Quantity", what: str) -> float:
        if split(quantity) != ({}, {}):
            raise ExpressionError(f"{what} must be a pure number, not {unit_of(quantity)}")
        return float(quantity.magnitude)

    def _call(self, name: str, arguments: list["Quantity"]) -> "Quantity":
        if name not in FUNCTIONS:
            raise ExpressionError(f"no function '{name}'; there are {', '.join(FUNCTIONS)}")
        if name in ("min", "max") and arguments:
            best = arguments[0]
            for other in arguments[1:]:
                best, other = self._like(best, other)
                best = min(best, other) if name == "min" else max(best, other)
            return best
        if len(arguments) != 1:
            raise ExpressionError(f"{name} takes {'at least one' if name in ('min', 'max') else 'one'} argument")
        (inner,) = arguments
        if name == "sqrt":
            return self._power(inner, 0.5)
        keep: dict[str, Callable[[float], float]] = {"abs": abs, "ceil": math.ceil, "floor": math.floor, "round": round}
        if name in keep:
            whole: Quantity = float(keep[name](inner.magnitude)) * (1 * inner.units)
            return whole
        pure = self._pure(inner, f"the argument of {name}")
        try:
            return self.units.number(float(getattr(math, name)(pure)))
        except ValueError as error:
            raise ExpressionError(f"{name}({pure:g}) has no value") from error
