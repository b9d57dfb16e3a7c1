"""Can a claim be true? Each is computed again from its own expressions, with units, and gets a verdict by rule.

`audit_plan(path)` returns the sheet that the verb shows, `audit(path)` the verdicts themselves. pint is imported by
these two only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.plan.audit.verdict import Verdict
    from moesaic.plan.sheet import Sheet


def audit(claims: Path | str | Mapping[str, Any] | None = None, recipe: str | None = None) -> "list[Verdict]":
    """Verdicts on the claims of a TOML file, of such a table, or (None) of the description of July 2023.

    `recipe` (a file or a shipped name; else the one that the file names; else gpt4) is what names such as
    `total_parameters` are computed from. Raises PlanError that names the claim and the field; RecipeError.
    """
    from moesaic.errors import PlanError
    from moesaic.plan.audit.claims import load, read
    from moesaic.plan.audit.names import device_names, recipe_names
    from moesaic.plan.audit.verdicts import judge
    from moesaic.recipe import read_recipe

    table = claims if isinstance(claims, Mapping) else load(claims)
    title = str(claims) if isinstance(claims, (str, Path)) else "claims"
    source = recipe if recipe is not None else table.get("recipe", "gpt4")
    if not isinstance(source, str):
        raise PlanError(f"{title}: recipe must be the name of a recipe or a file")
    names = device_names() | recipe_names(read_recipe(source))
    return [judge(claim) for claim in read(table, names, title).claims]


def audit_plan(claims: Path | str | Mapping[str, Any] | None = None, recipe: str | None = None) -> "Sheet":
    """The verdicts of `audit` as a sheet. Raises what `audit` raises."""
    said = claims if isinstance(claims, (str, Path)) else "claims"
    title = "Audit of the description of July 2023" if claims is None else f"Audit of {said}"
    return sheet_of(audit(claims, recipe), title)


def sheet_of(verdicts: "Sequence[Verdict]", title: str = "Audit of claims") -> "Sheet":
    """The verdicts as a sheet: counts, the table, the slips, and the agreement with expected verdicts."""
    from moesaic.plan.audit.report import sheet

    return sheet(verdicts, title)
