"""What every verb of the planner answers with: figures with unit and formula, tables, remarks.

One sheet is printed as tables, as JSON with stable keys, as an explanation, or as a page; the verbs only fill it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Z90 = 1.2815515655446004  # the 90 % quantile of a standard normal distribution


@dataclass(frozen=True)
class Interval:
    """A quantity with its uncertainty: 10 %, 50 % and 90 % quantiles."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def around(cls, middle: float, sigma: float) -> "Interval":
        """Of a log-normal quantity: its median, and the standard deviation of its logarithm."""
        factor = math.exp(Z90 * sigma)
        return cls(middle / factor, middle, middle * factor)

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
    """Rows of one shape. Keys of a row are stable and end in their unit. What is `first` is read before the figures."""

    key: str
    title: str
    rows: Sequence[Mapping[str, Value]]
    first: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture for the page.

    `lines` and `points` draw `series` of (x, y); `told[name]` are words under the pointer, one a point. `bars` stacks a
    series' y over the category of index x. `tornado` draws for each category the span from series `low` to series
    `high`, around its one mark. `timeline` draws `spans` of (lane, begin, end, kind), one lane a row; kinds are
    `forward`, `backward`, `weight-gradient`, others; what is `idle` or not covered is idle. `categories` name the
    bars or lanes. `marks` are lines at (value, name): at an x of lines and points, at a y of bars and tornado.
    """

    key: str
    title: str
    kind: Literal["lines", "points", "bars", "tornado", "timeline"]
    x: str  # name and unit of the axis; of bars and tornado: what the categories are
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    categories: Sequence[str] = ()
    spans: Sequence[tuple[int, float, float, str]] = ()
    marks: Sequence[tuple[float, str]] = ()
    told: Mapping[str, Sequence[str]] = field(default_factory=dict)


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

    def table(self, key: str, title: str, rows: Sequence[Mapping[str, Value]], first: bool = False) -> None:
        """Append a table; one that is `first` is read before the figures."""
        self.tables.append(Table(key, title, rows, first))

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
        """Figures by key, tables by key as lists of rows, and `notes`. What is no number (NaN, infinity) is null."""
        out: dict[str, Any] = {"title": self.title}
        for figure in self.figures:
            _put(out, figure.key, _plain(figure.value))
        for table in self.tables:
            _put(out, table.key, [{k: _plain(v) for k, v in row.items()} for row in table.rows])
        _put(out, "notes", list(self.notes))
        return out


def _put(out: dict[str, Any], key: str, value: Any) -> None:
    if key in out:
        raise ValueError(f"two entries of a sheet are called {key}")
    out[key] = value


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; NumPy's scalars become Python's."""
    if isinstance(value, Interval):
        return {"p10": _plain(value.p10), "p50": _plain(value.p50), "p90": _plain(value.p90)}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
