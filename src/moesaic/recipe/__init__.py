"""What the user writes: one TOML file = model + data + stages + layout + hardware. pydantic and the standard library only."""

from moesaic.recipe.data import Data, Source
from moesaic.recipe.layout import Hardware, Layout
from moesaic.recipe.model import Model
from moesaic.recipe.recipe import Checkpoints, Recipe, apply_override, check_recipe, read_recipe, recipe_files
from moesaic.recipe.rope import RopeScaling
from moesaic.recipe.stage import BatchStep, Optimizer, Stage

__all__ = [
    "BatchStep",
    "Checkpoints",
    "Data",
    "Hardware",
    "Layout",
    "Model",
    "Optimizer",
    "Recipe",
    "RopeScaling",
    "Source",
    "Stage",
    "apply_override",
    "check_recipe",
    "read_recipe",
    "recipe_files",
]
