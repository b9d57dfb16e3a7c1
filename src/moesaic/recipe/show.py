"""A recipe as text: TOML that reads back equal, the difference of two, a start for yours, a JSON Schema."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from moesaic.errors import RecipeError
from moesaic.recipe.recipe import Recipe, recipe_files

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Difference:
    """One value that differs; None where a recipe does not have it."""

    path: str
    left: Any
    right: Any


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe, defaults included; `read_recipe` gives it back equal."""
    return table_to_toml(recipe.model_dump(mode="json", exclude_none=True))


def table_to_toml(table: Mapping[str, Any]) -> str:
    """A plain table as TOML text."""
    return "\n".join(_table(table, ())).strip() + "\n"


def diff(left: Recipe, right: Recipe) -> list[Difference]:
    """Values that differ, by the path that `--set` takes: `stages.pretrain.optimizer.lr`."""
    a, b = (dict(_leaves(r.model_dump(mode="json"), "")) for r in (left, right))
    paths = dict.fromkeys((*a, *b))
    return [Difference(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]


def init(name: str = "pocket") -> str:
    """Text of a shipped recipe, comments and all, to be edited. Raises RecipeError."""
    shipped = recipe_files()
    if name not in shipped:
        raise RecipeError(f"no shipped recipe {name!r} to start from; there are: {', '.join(shipped)}")
    return shipped[name].read_text(encoding="utf-8")


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe; editors complete and check TOML with it."""
    tree = Recipe.model_json_schema()
    for table in (tree, *tree["$defs"].values()):
        for key, field in table.get("properties", {}).items():
            field.pop("title", None)  # only the key again
            meaning, unit, change = split_doc(field.get("description", ""), f"{table.get('title')}.{key}")
            unit = "" if unit in ("none", "table", "tables") else f" Unit: {unit}."
            field["description"] = f"{meaning.rstrip('.')}.{unit} Change it when: {change.rstrip('.')}."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}


def split_doc(text: str, field: str) -> tuple[str, str, str]:
    """Meaning, unit and when to change it, from a field's docstring. Raises ValueError naming `field`."""
    parts = [" ".join(p.split()) for p in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{field}: its docstring must read `meaning | unit | when to change it`, got {text!r}")
    return parts[0], parts[1], parts[2]


def parts() -> list[type[BaseModel]]:
    """Every table of a recipe, outermost first."""
    found: dict[type[BaseModel], None] = {Recipe: None}
    queue: list[Any] = [Recipe]
    while queue:
        for field in queue.pop(0).model_fields.values():
            for kind in _models(field.annotation):
                if kind not in found:
                    found[kind] = None
                    queue.append(kind)
    return list(found)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Leaves with their paths; members of a list of named tables go by name, other lists are leaves."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        yield path, [v["name"] for v in value]  # so that another order shows
        for inner in value:
            yield from _leaves({k: v for k, v in inner.items() if k != "name"}, f"{path}.{inner['name']}")
    else:
        yield path, value


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Lines of a table: values first, for TOML has no way back out of a sub-table."""
    lines, later = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            inner = _table(value, (*path, key))
            later += ["", f"[{_path((*path, key))}]", *inner] if value else []
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "name" in value[0]:
            for item in value:
                later += ["", f"[[{_path((*path, key))}]]", *_table(item, (*path, key))]
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + later


def _path(path: tuple[str, ...]) -> str:
    return ".".join(_key(k) for k in path)


def _key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)  # inf and nan are TOML too
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return _string(value)


def _string(text: str) -> str:
    # JSON's escapes are TOML's too; only DEL must be escaped in TOML and is not in JSON.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
