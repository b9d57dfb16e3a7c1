"""`moesaic plan ...`: one module a verb."""

import typer

from moesaic.commands.plan.audit import audit
from moesaic.commands.plan.compare import compare
from moesaic.commands.plan.failures import failures
from moesaic.commands.plan.fit import fit
from moesaic.commands.plan.params import params
from moesaic.commands.plan.serve import serve
from moesaic.commands.plan.train import train
from moesaic.commands.plan.validate import validate

plan_app = typer.Typer(
    help="Price a system: parameters, memory, time, failures, serving, money; check claims.",
    epilog="Example: moesaic plan params gpt4",
    no_args_is_help=True,
    rich_markup_mode=None,
)
plan_app.command("params", epilog="Example: moesaic plan params gpt4 --json")(params)
plan_app.command("train", epilog="Example: moesaic plan train gpt4 --hardware a100-80 --gpus 24960")(train)
plan_app.command("serve", epilog="Example: moesaic plan serve gpt4 --hardware a100-80 --gpus 128 --pp 16")(serve)
plan_app.command("failures", epilog="Example: moesaic plan failures gpt4 --gpus 24960 --days 95")(failures)
plan_app.command("compare", epilog="Example: moesaic plan compare scenarios.toml --html decision.html")(compare)
plan_app.command("audit", epilog="Example: moesaic plan audit")(audit)
plan_app.command("validate", epilog="Example: moesaic plan validate --rows")(validate)
plan_app.command("fit", epilog="Example: moesaic plan fit my_runs.csv --out mine.toml")(fit)
