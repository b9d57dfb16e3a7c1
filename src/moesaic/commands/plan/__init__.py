"""`moesaic plan ...`: one module a verb."""

import typer

from moesaic.commands.plan.audit import audit
from moesaic.commands.plan.compare import compare
from moesaic.commands.plan.failures import failures
from moesaic.commands.plan.fit import fit
from moesaic.commands.plan.params import params
from moesaic.commands.plan.search import search
from moesaic.commands.plan.serve import serve
from moesaic.commands.plan.train import train
from moesaic.commands.plan.validate import validate

EXAMPLES = {
    "params": ("gpt4 --json", "llama-3-70b --seq-len 8192"),
    "train": (
        "gpt4 --hardware a100-80 --gpus 24960",
        "gpt4 --hardware h100 --gpus 8192 --tp 8 --pp 15 --explain",
        "llama-3-70b --gpus 512 --tokens 1T --batch 4M",
    ),
    "search": (
        "gpt4 --hardware a100-80 --gpus 24960",
        "gpt4 --gpus 4096,8192,16384 --objective cost",
        "gpt4 --hardware a100-80:16384,h100:8192",
    ),
    "serve": ("gpt4 --hardware a100-80 --gpus 128 --pp 16", "gpt4 --hardware h100 --pp 8 --weights fp8 --target 0.002"),
    "failures": ("gpt4 --gpus 24960 --days 95", "gpt4 --gpus 24960 --restart 3min --price 1"),
    "compare": ("scenarios.toml --html decision.html", "--example > scenarios.toml"),
    "audit": ("", "claims.toml --recipe gpt4"),
    "validate": ("--rows", "mine.csv --stacks mine.toml"),
    "fit": ("my_runs.csv --out mine.toml",),
}
"""Options after the name of each verb, the first of them first."""


def _examples(verb: str) -> str:
    """The end of a verb's help; the mark keeps the lines apart."""
    lines = [f"moesaic plan {verb} {options}".rstrip() for options in EXAMPLES[verb]]
    return "\b\nExample: " + "\n         ".join(lines)


plan_app = typer.Typer(
    help="Price a system: parameters, memory, time, failures, serving, money; check claims.",
    epilog="Example: moesaic plan params gpt4",
    no_args_is_help=True,
    rich_markup_mode=None,
)
plan_app.command("params", epilog=_examples("params"))(params)
plan_app.command("train", epilog=_examples("train"))(train)
plan_app.command("search", epilog=_examples("search"))(search)
plan_app.command("serve", epilog=_examples("serve"))(serve)
plan_app.command("failures", epilog=_examples("failures"))(failures)
plan_app.command("compare", epilog=_examples("compare"))(compare)
plan_app.command("audit", epilog=_examples("audit"))(audit)
plan_app.command("validate", epilog=_examples("validate"))(validate)
plan_app.command("fit", epilog=_examples("fit"))(fit)
