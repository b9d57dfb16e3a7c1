"""A layout as the command line takes it: `tp=2,pp=2,schedule=zero_bubble`, or a file with a `[layout]` table."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, ValidationError

from moesaic.errors import RecipeError
from moesaic.recipe.layout import Layout
from moesaic.recipe.show import table_to_toml


class _Asked(Layout):
    """What may stand in a `[layout]` table: the layout, and what the planner found to go with it."""

    micro_batch: PositiveInt | None = None
    seq_len: PositiveInt | None = None


@dataclass(frozen=True)
class AskedLayout:
    """A layout, and the micro-batch (sequences) for stages of `seq_len` tokens, or for all stages where that is None.

    A layout knows nothing of batches: `overrides.with_layout` hands the micro-batch to the stages.
    """

    layout: Layout
    micro_batch: int | None = None
    seq_len: int | None = None


def parse_layout(text: str) -> Layout:
    """The layout of `tp=2,pp=2` or of a TOML or JSON file with a `[layout]` table.

    What is not given is 1 or `Layout`'s default, not what a recipe says. Raises RecipeError of one line.
    """
    return read_layout(text).layout


def read_layout(text: str) -> AskedLayout:
    """The same with the micro-batch that goes with it. Raises RecipeError."""
    path = Path(text).expanduser()
    is_file = path.suffix in (".toml", ".json") or ("=" not in text and path.is_file())
    table = _of_file(path) if is_file else _of_words(text)
    try:
        asked = _Asked.model_validate(table)
        layout = Layout.model_validate({k: v for k, v in table.items() if k in Layout.model_fields})
    except ValidationError as error:
        first, *more = error.errors()
        rest = f" (and {len(more)} more)" if more else ""
        raise RecipeError(f"--layout {text}: {_said(first)}{rest}") from error
    if asked.seq_len is not None and asked.micro_batch is None:
        raise RecipeError(f"--layout {text}: seq_len says which stages micro_batch is for; give both, or neither")
    return AskedLayout(layout, asked.micro_batch, asked.seq_len)


def layout_to_toml(asked: AskedLayout, about: str = "") -> str:
    """A complete file that `read_layout` gives back equal; `about` becomes a comment."""
    more = {"micro_batch": asked.micro_batch, "seq_len": asked.seq_len}
    table = asked.layout.model_dump(mode="json") | {k: v for k, v in more.items() if v is not None}
    comment = "".join(f"# {line}\n" for line in about.splitlines())
    return comment + table_to_toml({"layout": table})


def _of_words(text: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for word in text.split(","):
        key, separator, value = (part.strip() for part in word.partition("="))
        if not separator or not key or not value:
            raise RecipeError(
                f"--layout {text}: {word.strip()!r} is no key=value; write tp=2,pp=2 or name a .toml or .json file"
            )
        if key in table:
            raise RecipeError(f"--layout {text}: {key} is given twice")
        table[key] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return table


def _of_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
        tree = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except OSError as error:
        raise RecipeError(f"--layout {path}: it cannot be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError, TOMLDecodeError and JSONDecodeError are ValueErrors
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise RecipeError(f"--layout {path}: it is not {kind}: {' '.join(str(error).split())}") from error
    table = tree.get("layout") if isinstance(tree, dict) else None
    if not isinstance(table, dict):
        raise RecipeError(
            f"--layout {path}: there is no [layout] table; `moesaic plan search ... --out FILE` writes one"
        )
    return table


def _said(error: Mapping[str, Any]) -> str:
    """One of pydantic's findings in one line."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known: {', '.join(_Asked.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {message}" if key else message
