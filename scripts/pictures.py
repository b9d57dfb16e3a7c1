"""Draw the pictures of the README from what the planner says: docs/plan-pipeline.svg and docs/plan-validation.svg."""

from pathlib import Path

from moesaic.plan import train_plan
from moesaic.plan.picture import write_svg
from moesaic.plan.sheet import Chart, Sheet
from moesaic.plan.validate import validate, validation_sheet

DOCS = Path(__file__).parents[1] / "docs"


def chart(sheet: Sheet, key: str) -> Chart:
    """The chart of that key."""
    return next(c for c in sheet.charts if c.key == key)


def main() -> None:
    """Plan the described system, validate the planner, keep a chart of each."""
    plan = train_plan("gpt4", "a100-80", 24_960, price=1.0)
    write_svg(chart(plan, "pipeline"), DOCS / "plan-pipeline.svg")
    write_svg(chart(validation_sheet(validate()), "predicted_against_published"), DOCS / "plan-validation.svg")


if __name__ == "__main__":
    main()
