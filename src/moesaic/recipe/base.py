"""What every part of a recipe shares: frozen, strict, documented in place."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen table of the recipe. Unknown keys are errors.

    Each field carries its documentation as a docstring of three parts, `meaning | unit | when to change it`;
    `docs/recipe.md` and the JSON Schema are generated from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
