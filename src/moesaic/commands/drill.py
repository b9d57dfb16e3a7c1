"""`moesaic drill`."""

from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption, LayoutOption
from moesaic.errors import MoesaicError


def drill(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One drill; without it, all.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only say which drills there are.")] = False,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Break a small run on purpose and prove that it recovers.

    Trains the same system undisturbed and with each fault, under the supervisor, and compares losses, norms and
    weights bit for bit. Leaves the runs in runs/drill.
    """
    from moesaic.resilience.drills import ABOUT, LAYOUT, dump, run_drills, table

    if list_them:
        for kind, about in ABOUT.items():
            print(f"{kind:<15} {about}")
        return
    kinds = tuple(ABOUT) if name is None else tuple(k for k in ABOUT if k == name.replace("-", "_"))
    if not kinds:
        raise MoesaicError(f"there is no drill {name!r}; choose from {', '.join(ABOUT)}")
    say = (lambda line: None) if as_json else print
    drills = run_drills(Path("runs") / "drill", kinds, layout=layout or LAYOUT, say=say)
    print(dump(drills) if as_json else "\n".join(table(drills)))
    if not all(d.passed for d in drills):
        raise typer.Exit(1)
