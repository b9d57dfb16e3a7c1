"""Tables of a scenario file, read key by key: every error names the scenario and the field on one line."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moesaic.errors import MoesaicError, PlanError
from moesaic.plan.quantity import parse_context, parse_count, parse_duration, printable
from moesaic.plan.sheet import Interval


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors inside say where they come from, unless they do already."""
    try:
        yield
    except MoesaicError as error:
        said = str(error)
        raise PlanError(said if said.startswith(where) else f"{where}: {said}") from error


class Fields:
    """One table. Read every key that it may have, then call `done`, which refuses the others."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._table, self._where = table, where
        self._known: list[str] = []

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self._table.get(key)

    def _wrong(self, key: str, value: Any, change: str) -> PlanError:
        shown = printable(str(value))
        return PlanError(f"{self._where}{key} = {shown if len(shown) <= 40 else shown[:40] + '...'}: {change}")

    def text(self, key: str, choices: Sequence[str] = ()) -> str | None:
        """A word, one of `choices` where there are any."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "give a text")
        if choices and value not in choices:
            raise self._wrong(key, value, f"use one of {', '.join(choices)}")
        return value

    def flag(self, key: str) -> bool:
        """true or false; absent is false."""
        value = self._take(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "give true or false")
        return bool(value)

    def whole(self, key: str, least: int = 1) -> int | None:
        """A whole number from `least` on."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, value, f"give a whole number from {least} on")
        return value

    def count(self, key: str) -> float | None:
        """A positive count, as a number or as `13T`, `60M`."""
        value = self._take(key)
        if isinstance(value, str):
            return parse_count(value, f"{self._where}{key}")
        return None if value is None else self._number(key, value, 0.0, math.inf)

    def context(self, key: str) -> int | None:
        """A length in tokens, `8k` being 8,192."""
        value = self._take(key)
        return None if value is None else parse_context(str(value), f"{self._where}{key}")

    def duration(self, key: str) -> float | None:
        """Seconds of `10min`; a number without its unit is refused."""
        value = self._take(key)
        return None if value is None else parse_duration(str(value), f"{self._where}{key}")

    def number(self, key: str, least: float = 0.0, most: float = math.inf, zero: bool = False) -> float | None:
        """A number in (least, most], or [least, most] with `zero`. The unit is in the key."""
        value = self._take(key)
        return None if value is None else self._number(key, value, least, most, zero)

    def amount(self, key: str, least: float = 0.0, most: float = math.inf, closed: bool = False) -> Interval | None:
        """An uncertain number: `x`, `[p10, p90]` or `[p10, p50, p90]`, each as in `number`."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, list):
            one = self._number(key, value, least, most, closed)
            return Interval(one, one, one)
        if len(value) not in (2, 3):
            raise self._wrong(key, value, "give x, [p10, p90] or [p10, p50, p90]")
        ends = [self._number(key, x, least, most, closed) for x in value]
        middle = math.sqrt(ends[0] * ends[-1]) if len(ends) == 2 else ends[1]
        if not ends[0] <= middle <= ends[-1]:
            raise self._wrong(key, value, "p10 <= p50 <= p90 does not hold")
        return Interval(ends[0], middle, ends[-1])

    def _number(self, key: str, value: Any, least: float, most: float, closed: bool = False) -> float:
        bound = f"{'from' if closed else 'above'} {least:g}" + (f" to {most:g}" if math.isfinite(most) else "")
        if isinstance(value, str):
            raise self._wrong(key, value, f"give a plain number {bound}; its unit is in the key")
        inside = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not inside or not (least <= value if closed else least < value) or value > most:
            raise self._wrong(key, value, f"give a number {bound}")
        return float(value)

    def table(self, key: str) -> Mapping[str, Any] | None:
        """A table inside this one; `false` counts as an empty answer, see `refused`."""
        value = self._take(key)
        if value is None or value is False:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, f"write a table [{key}], or false")
        return value

    def tables(self, key: str) -> list[Mapping[str, Any]]:
        """An array of tables, empty where there is none."""
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._wrong(key, value, f"write tables, each under [[{key}]]")
        return value

    def refused(self, key: str) -> bool:
        """Whether the table `key` is given as `false`."""
        return self._table.get(key) is False

    def done(self) -> None:
        """Refuse what nobody asked for. Raises PlanError."""
        for key in self._table:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1) or [k for k in self._known if k.startswith(key)]
                change = f"did you mean {near[0]}?" if near else f"known: {', '.join(self._known)}"
                raise PlanError(f"{self._where}{printable(key)}: unknown key; {change}")
