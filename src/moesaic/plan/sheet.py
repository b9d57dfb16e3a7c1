"""What every verb of the planner answers with: figures with unit and formula, tables, remarks.

One sheet is printed as tables, as JSON with stable keys, as an explanation, or as a page; the verbs only fill it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Interval:
    """A quantity with its uncertainty: 10 %, 50 % and 90 % quantiles."""

    p10: float
    p50: float
    p90: float

    def map(self, factor: float) -> "Interval":
        """The interval of `factor` times the quantity; a negative factor is not meant."""
        return Interval(self.p10 * factor, self.p50 * factor, self.p90 * factor)


Value = float | int | str | bool | None | Interval


@dataclass(frozen=True)
class Figure:
    """One number of a sheet. `key` is stable, unique in its sheet and ends in the unit (`step_time_s`)."""

    section: str
    key: str
    label: str
    value: Value
    unit: str
    formula: str
    inputs: Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """Rows of one shape. Keys of a row are stable and end in their unit."""

    key: str
    title: str
    rows: Sequence[Mapping[str, Value]]


@dataclass(frozen=True)
class Chart:
    """A picture for the page. `lines` and `points` draw `series` of (x, y); `bars` stacks a series' y over the category
    of index x; `timeline` draws `spans` of (lane, begin, end, kind), one lane a row."""

    key: str
    title: str
    kind: Literal["lines", "points", "bars", "timeline"]
    x: str  # name and unit of the axis
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    categories: Sequence[str] = ()
    spans: Sequence[tuple[int, float, float, str]] = ()


@dataclass
class Sheet:
    """Figures, tables, charts and remarks in the order in which they are read."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, section: str, key: str, label: str, value: Value, unit: str, formula: str, **inputs: Value) -> None:
        """Append a figure; `inputs` are the numbers that `formula` speaks of."""
        self.figures.append(Figure(section, key, label, value, unit, formula, inputs))

    def table(self, key: str, title: str, rows: Sequence[Mapping[str, Value]]) -> None:
        """Append a table."""
        self.tables.append(Table(key, title, rows))

    def chart(self, chart: Chart) -> None:
        """Append a picture. Only the page shows it; its numbers are in a table too where they matter."""
        self.charts.append(chart)

    def note(self, text: str) -> None:
        """Append a remark: advice, or a reason not to trust a number too far."""
        self.notes.append(text)

    def __getitem__(self, key: str) -> Value:
        """The value of a figure. Raises KeyError."""
        for figure in self.figures:
            if figure.key == key:
                return figure.value
        raise KeyError(key)

    def to_json(self) -> dict[str, Any]:
        """Figures by key, tables by key as lists of rows, and `notes`."""
        out: dict[str, Any] = {"title": self.title}
        out |= {f.key: _plain(f.value) for f in self.figures}
        out |= {t.key: [{k: _plain(v) for k, v in row.items()} for row in t.rows] for t in self.tables}
        return out | {"notes": list(self.notes)}


def _plain(value: Value) -> Any:
    return {"p10": value.p10, "p50": value.p50, "p90": value.p90} if isinstance(value, Interval) else value
