"""Shapes by name: shipped ones with their sources, recipes, folders with a `config.json`, rows of measurements."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import PlanError
from moesaic.plan.hf_shape import shape_from_config
from moesaic.plan.shape import LatentAttention, Shape, shape_of

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


# Architectures of the measurements that are not plain transformers: linear attention, state spaces, compressed or
# per-layer attention. Nothing here prices them.
# `serving_shape` knows some all the same, which are shipped as what their cache makes of them.
NOT_PLAIN = ("Qwen3-Next", "Qwen3.5", "Nemotron-3-", "DeepSeek-V4", "Gemma-4")


@dataclass(frozen=True)
class Known:
    """A shipped shape. `published_b`: total and, where sparse, active parameters as its makers print them, in 1e9."""

    shape: Shape
    aliases: tuple[str, ...]
    published_b: tuple[float, ...]


@cache
def known_shapes() -> Mapping[str, Known]:
    """All shipped shapes by name, as `shapes.toml` gives them."""
    table = tomllib.loads(files("moesaic.plan").joinpath("shapes.toml").read_text(encoding="utf-8"))
    return {name: _known(name, dict(values)) for name, values in table.items()}


def _known(name: str, values: dict[str, Any]) -> Known:
    aliases, published = tuple(values.pop("aliases", ())), tuple(values.pop("published_b"))
    if latent := values.pop("latent", None):
        values["latent"] = LatentAttention(**{"q_rank": None, **latent})
    values["dense_at"] = tuple(values.get("dense_at", ()))
    return Known(Shape(name=name, **values), aliases, published)


@cache
def _by_any_name() -> Mapping[str, Known]:
    return {_plain(n): k for name, k in known_shapes().items() for n in (name, *k.aliases)}


def _plain(name: str) -> str:
    """Names alike but for case, spaces and underscores are one: "Llama-3 70B", llama-3-70b."""
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def read_shape(source: str | Path) -> Shape:
    """The shape of a shipped name, a recipe (name or .toml), or a Hugging Face config.json (or its folder).

    Raises PlanError, and RecipeError for a recipe that cannot be read.
    """
    return read_source(source)[0]


def read_source(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Shape, Recipe | None]:
    """As `read_shape`, with the recipe where `source` is one; only a recipe takes `a.b=c` overrides."""
    from moesaic.recipe import read_recipe

    shape = _no_recipe(source)
    if shape is None:
        recipe = read_recipe(source, overrides)
        return shape_of(recipe.model, recipe.name), recipe
    if overrides:
        raise PlanError(f"--set {overrides[0]}: {source} is no recipe; only recipes can be changed")
    return shape, None


def _no_recipe(source: str | Path) -> Shape | None:
    """The shape of a source that is no recipe, None for one that is. Raises PlanError when it is nothing."""
    from moesaic.recipe import recipe_files

    path, text = Path(source), str(source)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise PlanError(f"{text}: the folder holds no config.json; give a model folder, a recipe or a shape's name")
    if path.is_file() and path.suffix == ".json":
        return shape_from_config(path)
    if path.is_file() or text in recipe_files():
        return None
    if found := _by_any_name().get(_plain(text)):
        return found.shape
    if path.suffix in (".toml", ".json") or len(path.parts) > 1:
        raise PlanError(f"no file {text}; give a recipe, a config.json or a shape's name")
    raise PlanError(f"no model '{text}'; recipes: {', '.join(recipe_files())}; shapes: {', '.join(known_shapes())}")


def shape_for_row(row: Mapping[str, str]) -> Shape | None:
    """The shape behind a row of published measurements, or None where it is unknown or no plain transformer.

    A shipped shape serves when the row's model is one of its names and none of the row's columns contradicts it;
    otherwise the columns are the shape. Columns that are blank take the family's habit: GELU blocks have biases and
    learned positions (GPT), gated ones do not (Llama); the head is tied or not as the published total has it.
    """
    model = row.get("model", "")
    if model.startswith(NOT_PLAIN):
        return None
    if (known := _named(row)) is not None:
        return known
    if all(row.get(key, "").isdigit() for key in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")):
        return _from_columns(row)
    return None


def serving_shape(row: Mapping[str, str]) -> Shape | None:
    """As `shape_for_row`, and hybrids of linear and full attention that are shipped: a decode step reads of a fixed
    state what it reads of a window's cache. Their training is another matter."""
    return shape_for_row(row) or (_named(row) if row.get("model", "").startswith(NOT_PLAIN) else None)


def _named(row: Mapping[str, str]) -> Shape | None:
    known = _by_any_name().get(_plain(row.get("model", "")))
    return known.shape if known and not _contradicts(row, known.shape) else None


def _contradicts(row: Mapping[str, str], shape: Shape) -> bool:
    mine = {
        "n_layers": shape.n_layers,
        "d_model": shape.d_model,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "n_experts": shape.n_experts if shape.n_experts > 1 else "",
        "top_k": shape.top_k if shape.n_experts > 1 else "",
    }
    return any(row.get(key, "").isdigit() and row[key] != str(value) for key, value in mine.items())


def _from_columns(row: Mapping[str, str]) -> Shape:
    def number(key: str, otherwise: int) -> int:
        return int(row[key]) if row.get(key, "").isdigit() else otherwise

    d, heads = int(row["d_model"]), int(row["n_heads"])
    experts, gpt = number("n_experts", 1), row.get("ffn") in ("gelu", "relu")
    shape = Shape(
        name=row["model"],
        n_layers=int(row["n_layers"]),
        d_model=d,
        n_heads=heads,
        n_kv_heads=int(row["n_kv_heads"]),
        head_dim=d // heads,
        d_ff=int(row["d_ff"]),
        vocab_size=number("vocab", 32_000),
        n_experts=experts,
        top_k=number("top_k", 2) if experts > 1 else 1,
        d_expert=int(row["d_ff"]) if experts > 1 else 0,
        ffn_matrices=2 if gpt else 3,
        tied=gpt,
        positions=number("seq_len", 2048) if gpt else 0,
        biases=gpt,
        norm_values=2 if gpt else 1,
        context=number("seq_len", 8192),
        source=row.get("source", ""),
    )
    published = float(row.get("params_b") or 0) * 1e9
    other = replace(shape, tied=not shape.tied)
    nearer = abs(other.total_parameters - published) < abs(shape.total_parameters - published)
    return other if published and nearer else shape
