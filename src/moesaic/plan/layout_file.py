"""The layout that a search found, as a file that `moesaic train RECIPE --layout FILE` takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moesaic.durable import write_durably
from moesaic.errors import PlanError
from moesaic.plan.shapes import read_source
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.workload import workload
from moesaic.recipe import Layout, Model
from moesaic.recipe.layout_text import AskedLayout, layout_to_toml

NAMES = ("pp", "dp", "cp", "tp", "ep", "etp", "zero", "recompute")  # alike in both worlds


def write_layout(
    sheet: Sheet, path: Path, source: str, values: Sequence[str] = (), seq_len: int | None = None, reduce: str = "fp32"
) -> list[str]:
    """Write the best layout of `plan search` that trains the recipe `source`; return what should be known of it.

    Best by the list of best layouts, so that the first is passed over where the planner allows what training does not
    (a batch that is no whole number of its replicas, embedding and head as pipeline pieces of their own). Where
    all break a rule of the recipe's stages, the first that the model allows is written and the rules are returned.
    `reduce`: fp32 or bf16, in which gradients are kept. Raises PlanError.
    """
    rows = next((t.rows for t in sheet.tables if t.key == "top"), None)
    if rows is None:
        raise PlanError("--out writes one layout; give one generation of devices: --hardware DEVICE --gpus N")
    shape, recipe = read_source(source, values)
    length = workload(shape, recipe, seq_len).seq_len
    found = [asked_layout(row, length, reduce) for row in rows]
    model, stages = (recipe.model, recipe.stages) if recipe else (None, ())
    never = [_never(a.layout, shape.n_layers, model) for a in found]
    yet = [[] if model is None else a.layout.problems(model, stages) for a in found]
    runs = [n for n, problems in enumerate(never) if not problems]
    if not runs:
        raise PlanError(f"--out {path}: none of the {len(found)} best layouts can be trained; raise --top")
    best = next((n for n in runs if not yet[n]), runs[0])
    notes = []
    if best:
        why = (never[0] or yet[0])[0]
        notes.append(f"{path} holds row {best + 1} of the best layouts; the first cannot be trained so: {why}")
    if yet[best]:
        notes.append(f"{path} does not suit the stages of {source} yet: {'; '.join(yet[best])}")
    title = f"{sheet.title}; row {best + 1} of the layouts that moesaic plan search lists"
    try:
        write_durably(path, layout_to_toml(found[best], title).encode())
    except OSError as error:
        raise PlanError(f"--out {path}: it cannot be written: {error.strerror}") from error
    return notes


def _never(layout: Layout, n_layers: int, model: Model | None) -> list[str]:
    """Why no stage could be trained in it."""
    if model is not None:
        return layout.problems(model)
    pieces = layout.pp * layout.chunks_per_rank
    return [f"{pieces} pipeline pieces for {n_layers} layers"] if pieces > n_layers else []


def asked_layout(row: Mapping[str, Value], seq_len: int, reduce: str = "fp32") -> AskedLayout:
    """A row of the planner's layouts as training takes it: several chunks a stage are an interleaved pipeline."""
    chunks = int(str(row["chunks"]))
    table = {name: row[name] for name in NAMES} | {"reduce": reduce}
    table |= {"schedule": "interleaved", "chunks": chunks} if chunks > 1 else {"schedule": "1f1b"}
    return AskedLayout(Layout.model_validate(table), int(str(row["micro_batch"])), seq_len)
