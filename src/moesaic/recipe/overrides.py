"""What the command line changes in a recipe: other data, weights to start from, layout, single values."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from moesaic.errors import RecipeError
from moesaic.recipe.layout import Hardware
from moesaic.recipe.layout_text import read_layout
from moesaic.recipe.model import Model
from moesaic.recipe.recipe import Recipe, apply_override, check_recipe, resolve_paths

CHAT_KEYS = {"messages", "conversations", "conversation", "instruction"}  # OpenAI, ShareGPT, Alpaca
THIS_MACHINE = Hardware().name
OF_THE_RECIPE = ("balance_weight", "z_weight", "balance_scope", "init_std")  # what only training reads of a model
NOT_PATHS = ("hf:", "builtin:")
Kind = Literal["text", "chat"]


def with_values(recipe: Recipe, overrides: Sequence[str], folder: Path) -> Recipe:
    """`recipe` with `a.b=c` applied; relative paths are relative to `folder`. Raises RecipeError."""
    if not overrides:
        return recipe
    tree = recipe.model_dump(mode="json", exclude_none=True)
    for override in overrides:
        apply_override(tree, override)
    resolve_paths(tree, folder)
    return check_recipe(tree, "--set")


def with_layout(recipe: Recipe, text: str, overrides: Sequence[str] = (), folder: Path = Path()) -> Recipe:
    """`recipe` in the layout that `text` says (as `parse_layout` reads it), then with `overrides` as `with_values`.

    Both are checked together, so that a batch may be changed to suit the layout. A micro-batch beside the layout goes
    to the stages of the `seq_len` beside it, or to all. On "this machine" processes are no devices, so that
    `hardware.count` rises to what the layout needs; elsewhere too many are an error. Raises RecipeError.
    """
    asked = read_layout(text)
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["layout"] = asked.layout.model_dump(mode="json")
    if recipe.hardware.name == THIS_MACHINE:
        tree["hardware"]["count"] = max(recipe.hardware.count, asked.layout.world)
    if asked.micro_batch is not None:
        suited = [s for s in tree["stages"] if asked.seq_len in (None, s["seq_len"])]
        if not suited:
            lengths = sorted({s.seq_len for s in recipe.stages})
            raise RecipeError(
                f"--layout {text}: micro_batch is for seq_len = {asked.seq_len}, the stages of {recipe.name!r} have "
                f"{lengths}; change seq_len there or leave it out"
            )
        for stage in suited:
            stage["micro_batch"] = asked.micro_batch
    for override in overrides:
        apply_override(tree, override)
    resolve_paths(tree, folder)
    return check_recipe(tree, f"--layout {text}")


def with_data(recipe: Recipe, data: str, stage: str | None = None) -> Recipe:
    """`recipe` reading your own data: a .jsonl of chats, a file or folder of text, or `hf:owner/name`.

    Chats take the place of all chat sources, text that of all text and code sources, and keep their largest
    number of epochs. With `stage` that stage reads your data alone, whatever it is. Sources that no stage
    reads any more are dropped. The new source is named after the file. Raises RecipeError.
    """
    kinds = {s.name: s.kind for s in recipe.data.sources}
    kind: Kind | None = data_kind(data)
    if stage is not None:
        replaced = set(recipe.stage(stage).sources)
        if kind is None:
            kind = "chat" if all(kinds[n] == "chat" for n in replaced) else "text"
    else:
        kind = kind or "text"
        replaced = {n for n, k in kinds.items() if (k == "chat") == (kind == "chat")}
    if not replaced:
        raise RecipeError(f"--data {data}: it holds {kind}, which no stage of {recipe.name!r} reads; choose --stage")
    touched = [stage] if stage is not None else [s.name for s in recipe.stages if replaced & set(s.sources)]
    kept = {n for s in recipe.stages for n in s.sources if s.name not in touched or n not in replaced}
    name = _free_name(Path(data.rpartition(":")[2]).stem or "mine", kept)

    tree = recipe.model_dump(mode="json", exclude_none=True)
    for table in tree["stages"]:
        if table["name"] in touched:
            _replace(table, replaced, name)
    path = data if data.startswith(NOT_PATHS) else str(Path(data).expanduser().resolve())
    epochs = max(s.epochs for s in recipe.data.sources if s.name in replaced)
    mine = {"name": name, "kind": kind, "path": path, "epochs": epochs}
    tree["data"]["sources"] = [s for s in tree["data"]["sources"] if s["name"] in kept] + [mine]
    return check_recipe(tree, f"--data {data}")


def with_init(recipe: Recipe, folder: Path, stage: str | None = None, shape: Model | None = None) -> Recipe:
    """`recipe` starting from the weights and the tokenizer of a model folder, whose `shape` it takes if given.

    With `stage` that stage is all that is left of the recipe, with the sources it reads; else the first one
    starts from the folder. Raises RecipeError.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise RecipeError(f"--init {folder}: no config.json there; give a model folder, such as runs/NAME/model")
    chosen = recipe.stage(stage) if stage is not None else recipe.stages[0]
    stages = [chosen] if stage is not None else list(recipe.stages)
    read = {n for s in stages for n in s.sources}
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["stages"] = [t for t in tree["stages"] if t["name"] in {s.name for s in stages}]
    tree["stages"][0]["init"] = str(folder)
    if shape is not None:
        training = {name: getattr(recipe.model, name) for name in OF_THE_RECIPE}
        for table in tree["stages"]:  # a base below that of the weights would undo what they have learned
            if table.get("rope_theta", shape.rope_theta) < shape.rope_theta:
                del table["rope_theta"]
        tree["model"] = shape.model_dump(mode="json", exclude_none=True) | training
    tree["data"]["sources"] = [s for s in tree["data"]["sources"] if s["name"] in read]
    if (folder / "tokenizer.json").is_file():
        tree["data"]["tokenizer"] = str(folder)
    return check_recipe(tree, f"--init {folder}")


def data_kind(data: str) -> Kind | None:
    """What a path holds, by its ending and the keys of its first row; None when these do not tell.

    Raises RecipeError when there is nothing.
    """
    if data.startswith(NOT_PATHS):
        return None
    path = Path(data).expanduser()
    if not path.exists():
        raise RecipeError(f"--data {data}: there is no such file or folder; give an existing path or hf:owner/name")
    if path.is_dir() or path.suffix != ".jsonl":
        return None if path.suffix == ".parquet" else "text"
    try:
        with path.open(encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
        row = json.loads(first)
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise RecipeError(
            f"--data {data}: its first row is not JSON ({error}); write one JSON object a line"
        ) from error
    return "chat" if isinstance(row, dict) and CHAT_KEYS & row.keys() else "text"


def _replace(stage: dict[str, Any], replaced: set[str], name: str) -> None:
    """Let a stage read `name` instead of `replaced`, with the weight they had together."""
    rest = [n for n in stage["sources"] if n not in replaced]
    weights = stage.pop("weights", None)
    if weights and rest:
        share = sum(w for n, w in weights.items() if n in replaced)
        stage["weights"] = {n: weights[n] for n in rest} | {name: share}
    stage["sources"] = [*rest, name]


def _free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with a number behind it when that name is taken."""
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
