"""Arguments and options that several verbs of the planner share."""

from pathlib import Path
from typing import Annotated

import typer

SourceArg = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A recipe, a known model's name, or a config.json or its folder.")
]
HardwareOption = Annotated[
    str, typer.Option("--hardware", metavar="DEVICE", help="a100-80, h100, gb200, ...; an unknown name lists all.")
]
StackOption = Annotated[
    str, typer.Option("--stack", metavar="NAME", help="Training stack: megatron-core, fsdp, research, ...")
]
StacksOption = Annotated[
    Path | None, typer.Option("--stacks", metavar="FILE", help="Stack profiles of your own, from `moesaic plan fit`.")
]
PricesOption = Annotated[
    Path | None, typer.Option("--prices", metavar="FILE", help="Prices of your own (TOML) over the shipped ones.")
]
