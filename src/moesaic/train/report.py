"""`report.html`: one file that tells what a run did; no scripts, nothing to fetch."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from moesaic.charts import Mark, Picture, Series, heat_map, line_chart, short, smooth, stylesheet
from moesaic.durable import write_durably
from moesaic.errors import CheckpointError, RecipeError
from moesaic.recipe import Recipe, check_recipe
from moesaic.train.checkpoint import problem_of
from moesaic.train.goodput import goodput_of
from moesaic.train.metrics import read_metrics

Line = Mapping[str, Any]
STRIP_COLUMNS = 120  # moments shown in the strips of load over time


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path. Parts of a run that are missing stay out.

    Raises CheckpointError when `run` holds neither a recipe nor metrics, or one of them is damaged.
    """
    if not (run / "recipe.toml").exists() and not (run / "metrics.jsonl").exists():
        raise CheckpointError(f"{run} is not a run folder: it has no recipe.toml; give one that `train` made")
    metrics = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    steps = [line for line in metrics if "event" not in line]
    evaluations = [line for line in metrics if line.get("event") == "evaluation"]
    forecast = _read(run / "forecast.json")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "clock": clock, "bytes": lambda n: f"{short(n)}B"}
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    recipe = _recipe(run / "recipe.toml")
    page = template.render(
        style=stylesheet(),
        name=recipe.name if recipe else run.name,
        recipe=recipe,
        machine=_words(forecast.get("machine")),
        forecast=forecast,
        facts=_facts(steps),
        charts=training_charts(steps, evaluations),
        load=load_charts(steps),
        positions=position_charts([line for line in metrics if line.get("event") == "loss_by_position"], recipe),
        ledger=_read(run / "ledger.json"),
        stages=forecast_against_actual(forecast, steps),
        samples=[line for line in metrics if line.get("event") == "sample"][-12:],
        checkpoints=_checkpoints(run / "checkpoints"),
        restarts=[line for line in metrics if line.get("event") == "resume"],
        goodput=str(goodput_of(metrics, recipe)),
    )
    out = run / "report.html"
    write_durably(out, page.encode())
    return out


def training_charts(steps: Sequence[Line], evaluations: Sequence[Line]) -> dict[str, Picture]:
    """Curves over the run's clock (tokens trained on)."""
    marks = _stage_marks(steps)

    def curve(key: str, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(s["tokens"], s[key] * scale) for s in steps if s.get(key) is not None]

    def chart(key: str, label: str, scale: float = 1.0, zero: bool = True) -> Picture:
        return line_chart([Series("", curve(key, scale))], "tokens", label, zero=zero, marks=marks)

    loss = [Series("each step", curve("loss"), 0, faint=True)]
    for stage in dict.fromkeys(s["stage"] for s in steps):
        own = [(s["tokens"], s["loss"]) for s in steps if s["stage"] == stage and s.get("loss") is not None]
        loss.append(Series("smoothed within a stage", smooth(own), 0))
    clock_at = {s["step"]: s["tokens"] for s in steps}
    held_out: dict[str, list[tuple[float, float]]] = {}
    for line in evaluations:
        for source, bits in line["bits_per_byte"].items():
            held_out.setdefault(source, []).append((clock_at.get(line["at_step"], 0), bits))
    colors = [Series(name, points, i % 6, dots=True) for i, (name, points) in enumerate(held_out.items())]
    return {
        "loss": line_chart(loss, "tokens", "loss, nats per token", marks=marks, width=1080, height=300),
        "held_out": line_chart(colors, "tokens", "held-out bits per byte", marks=marks),
        "lr": chart("lr", "learning rate"),
        "batch": chart("batch_tokens", "batch, tokens"),
        "rate": chart("tokens_per_second", "tokens per second"),
        "peak": chart("peak_share", "% of measured GEMM peak", 100),
        "norm": chart("grad_norm", "gradient norm"),
        "balance": chart("balance_loss", "balance loss", zero=False),
    }


def load_charts(steps: Sequence[Line]) -> dict[str, Picture] | None:
    """Expert load, even being 1: each expert at the last step, the busiest of each layer over time."""
    loads = [(s["tokens"], s["load"]) for s in steps if s.get("load") and len(s["load"][0]) > 1]
    if not loads:
        return None
    last = [[share * len(layer) for share in layer] for layer in loads[-1][1]]
    stride = -(-len(loads) // STRIP_COLUMNS)
    groups = [loads[i : i + stride] for i in range(0, len(loads), stride)]
    busiest = [
        [sum(max(load[layer]) for _, load in g) / len(g) * len(last[0]) for g in groups] for layer in range(len(last))
    ]
    clock_range = (float(loads[0][0]), float(loads[-1][0]))
    return {
        "last": heat_map(last, "expert"),
        "time": heat_map(busiest, "tokens", column_range=clock_range),
    }


def position_charts(looks: Sequence[Line], recipe: Recipe | None) -> list[tuple[str, Picture]]:
    """Loss by position for each stage that was looked at before and after, or only after."""
    out: list[tuple[str, Picture]] = []
    lengths = {s.name: s.seq_len for s in recipe.stages} if recipe else {}
    names = list(lengths)
    for stage in dict.fromkeys(line["stage"] for line in looks):
        curves = [
            Series(
                f"{'before' if when else 'after'} {stage}",
                [(p, nats) for p, nats, _ in line["points"]],
                int(when),
                dots=True,
            )
            for when in (True, False)
            for line in [e for e in looks if e["stage"] == stage and e["before"] is when][-1:]
            if line["points"]
        ]
        index = names.index(stage) if stage in names else 0
        seen = max((lengths[n] for n in names[:index]), default=0)
        marks = [Mark(seen, f"trained to {seen}")] if 0 < seen < lengths.get(stage, 0) else []
        if curves:
            out.append((stage, line_chart(curves, "position, tokens", "loss, nats per token", marks=marks)))
    return out


def forecast_against_actual(forecast: Line, steps: Sequence[Line]) -> list[dict[str, Any]]:
    """A row a stage: what was expected and what came. Time is that of steps, without evaluations."""
    expected = {s["name"]: s for s in forecast.get("stages", [])}
    rows = []
    for name in dict.fromkeys([*expected, *(s["stage"] for s in steps)]):
        own = [s for s in steps if s["stage"] == name]
        seconds = sum(s.get("seconds") or 0 for s in own)
        tokens = sum(s.get("batch_tokens") or 0 for s in own)
        rows.append(
            {
                "name": name,
                "expected": expected.get(name, {}),
                "steps": len(own),
                "tokens": tokens,
                "seconds": seconds,
                "rate": tokens / seconds if seconds else None,
                "skipped": sum(bool(s.get("skipped")) for s in own),
            }
        )
    return rows


def clock(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(steps: Sequence[Line]) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    if not steps:
        return []
    last, seconds = steps[-1], sum(s.get("seconds") or 0 for s in steps)
    recent = [s["peak_share"] for s in steps[-50:] if s.get("peak_share") is not None]
    losses = [s["loss"] for s in steps[-50:] if s["stage"] == last["stage"] and s.get("loss") is not None]
    facts = [
        ("stage", str(last["stage"])),
        ("steps", f"{last['step']:,}"),
        ("tokens", short(last["tokens"])),
        ("training time", clock(seconds)),
    ]
    if losses:
        facts.append((f"loss, last {len(losses)} steps", f"{sum(losses) / len(losses):.3f}"))
    if recent:
        facts.append(("of measured peak", f"{sum(recent) / len(recent):.0%}"))
    return facts


def _stage_marks(steps: Sequence[Line]) -> list[Mark]:
    first: dict[str, float] = {}
    for line in steps:
        first.setdefault(line["stage"], line["tokens"] - (line.get("batch_tokens") or 0))
    return [Mark(x, name) for name, x in first.items()] if len(first) > 1 else []


def _recipe(path: Path) -> Recipe | None:
    if not path.exists():
        return None
    try:
        return check_recipe(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecipeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy the run's recipe there again") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it to report without it") from error
    return content


def _words(machine: Any) -> str:
    if isinstance(machine, Mapping):
        return ", ".join(f"{key} {value}" for key, value in machine.items())
    return str(machine or "")


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(folder.glob("step_*")):
        if not path.is_dir() or path.suffix == ".partial":
            continue
        problem = problem_of(path, hashes=False)
        pinned = problem is None and json.loads((path / "manifest.json").read_bytes())["pinned"]
        size = sum(f.stat().st_size for f in path.iterdir())
        rows.append({"name": path.name, "bytes": size, "pinned": pinned, "problem": problem})
    return rows
