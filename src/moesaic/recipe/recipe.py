"""The recipe: one TOML file that describes a whole system, read, overridden, checked and hashed."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from moesaic.errors import RecipeError
from moesaic.recipe.base import Part
from moesaic.recipe.data import Data
from moesaic.recipe.layout import Hardware, Layout
from moesaic.recipe.model import Model
from moesaic.recipe.stage import Stage


class Checkpoints(Part):
    """When and how many checkpoints are kept."""

    every_steps: PositiveInt = 100
    """Optimizer steps between checkpoints. | steps | lost work is dear (lower) or saving is slow (raise)."""
    keep: PositiveInt = 2
    """Newest good checkpoints kept; the last of each stage is kept besides. | checkpoints | disk."""
    retries: NonNegativeInt = 2
    """Further tries when a save fails; after them training goes on with a warning. | tries | flaky storage."""
    background: bool = True
    """Write while training goes on; false waits for the disk. | none | host memory has no room for a copy."""
    mtbf_hours: PositiveFloat | None = None
    """Mean time between failures of the whole machine. With it, saves come at the Young/Daly interval from the measured time of a save, at most `every_steps` apart. | hours | you know it, or `moesaic plan failures` forecasts it."""


class Recipe(Part):
    """A system: model + data + stages + layout + hardware."""

    name: str
    """Name of the recipe and default name of its run folder. | none | you copy it."""
    about: str = ""
    """One line for people. | none | you copy it."""
    seed: NonNegativeInt = 0
    """Source of every random number of the run. | none | you want another sample."""
    model: Model
    """The decoder. | table | see Model."""
    data: Data
    """Sources. | table | see Data."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Stages in the order they run. | tables | see Stage."""
    layout: Layout = Layout()
    """Parallel layout. | table | see Layout."""
    hardware: Hardware = Hardware()
    """Devices. | table | see Hardware."""
    checkpoints: Checkpoints = Checkpoints()
    """When to save. | table | see Checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [s.name for s in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages share a name: {names}; names must be unique")
        known = {s.name for s in self.data.sources}
        for stage in self.stages:
            if missing := set(stage.sources) - known:
                raise ValueError(
                    f"stage {stage.name!r} reads sources that are not in data.sources: {sorted(missing)}; known: {sorted(known)}"
                )
        for key in ("d_model", "d_ff") if self.model.n_experts > 1 else ():
            if (value := getattr(self.model, key)) % 8:
                raise ValueError(
                    f"{key} = {value} is not a multiple of 8, which grouped matrix multiplication needs "
                    f"in 16 bit; use {-(-value // 8) * 8}"
                )
        if problems := self.layout.problems(self.model, self.stages):
            raise ValueError("; ".join(problems))
        if self.layout.world > self.hardware.count:
            raise ValueError(
                f"the layout needs {self.layout.world} devices, hardware.count = {self.hardware.count}; change one of them"
            )
        return self

    @property
    def tokenizer(self) -> str | None:
        """Where the tokenizer comes from: `data.tokenizer`, or the model folder that the first stage starts from."""
        return self.data.tokenizer or self.stages[0].init

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises RecipeError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise RecipeError(f"no stage {name!r} in recipe {self.name!r}; it has {[s.name for s in self.stages]}")

    def system_hash(self) -> str:
        """Hash of what decides the weights: model, data, stages, seed. Must match on resume."""
        tree = self.model_dump(mode="json", include={"model", "data", "stages", "seed"})
        for stage in tree["stages"]:  # without where and in which pieces a batch is computed
            del stage["micro_batch"]
            for step in stage["batch"]:
                del step["dp"]
        return _digest(tree)

    def full_hash(self) -> str:
        """Hash of everything but name and description; recorded, must match between ranks."""
        return _digest(self.model_dump(mode="json", exclude={"name", "about"}))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(_said(value), sort_keys=True).encode()).hexdigest()[:16]


def _said(value: Any) -> Any:
    """`value` without what is off or absent, so that an option added later, off by itself, changes no hash."""
    if isinstance(value, dict):
        return {k: _said(v) for k, v in value.items() if v is not None and v is not False and v not in ([], {})}
    return [_said(v) for v in value] if isinstance(value, list) else value


def recipe_files() -> dict[str, Path]:
    """Recipes that come with moesaic, by name: from the installed package, or from the source tree."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "recipes", here.parents[3] / "recipes"):
        if files := {p.stem: p for p in sorted(folder.glob("*.toml"))}:
            return files
    return {}


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by the name of a shipped one, apply `a.b=c` overrides, and check it.

    Relative paths in `data` are resolved against the recipe file. Raises RecipeError.
    """
    path = Path(source)
    if not path.is_file():
        shipped = recipe_files()
        if str(source) not in shipped:
            raise RecipeError(f"no recipe file {str(source)!r}; shipped recipes: {', '.join(shipped)}")
        path = shipped[str(source)]
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        apply_override(tree, override)
    resolve_paths(tree, path.parent)
    return check_recipe(tree, str(path))


def check_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Turn a tree of plain values into a Recipe; `where` names it in the RecipeError."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first, *more = error.errors()
        place = ".".join(str(p) for p in first["loc"]) or "recipe"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key; `moesaic recipe schema` lists the known ones"
        rest = f" (and {len(more)} more)" if more else ""
        raise RecipeError(f"{where}: {place}: {message}{rest}") from error


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Apply `a.b=c` in place. Lists of named tables take the name: `stages.pretrain.tokens=1_000_000`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override!r}: write it as key=value, for example model.n_layers=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} is a value, not a table")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise RecipeError(f"--set {override!r}: there is no table {part!r}")


def _index(node: list[Any], part: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise RecipeError(f"--set {override!r}: no {part!r} among {[n for n in names if n] or len(node)}")


def resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of `data` absolute, in place, so that a run folder can be moved away from its recipe."""
    data = tree.get("data")
    tables = [*data.get("sources", []), data] if isinstance(data, dict) else []
    for table, key in [(t, k) for t in tables if isinstance(t, dict) for k in ("path", "tokenizer")]:
        value = table.get(key)
        if isinstance(value, str) and not value.startswith(("hf:", "builtin:")):
            table[key] = str((folder / Path(value).expanduser()).resolve())
