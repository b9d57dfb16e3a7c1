"""`moesaic plan ...`: one module a verb."""

import typer

from moesaic.commands.plan.audit import audit

plan_app = typer.Typer(
    help="Price a system: parameters, memory, time, failures, serving, money; check claims.",
    epilog="Example: moesaic plan params gpt4",
    no_args_is_help=True,
    rich_markup_mode=None,
)

plan_app.command("audit", epilog="Example: moesaic plan audit")(audit)
