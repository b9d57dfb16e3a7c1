"""`moesaic eval`"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.commands.data import HOME, HomeOption
from moesaic.commands.options import JsonOption
from moesaic.commands.progress import progress_on_stderr
from moesaic.commands.talk import ModelArg
from moesaic.errors import MoesaicError

if TYPE_CHECKING:
    from moesaic.data import DataFolder
    from moesaic.evals import SuiteResult

SuiteOption = Annotated[
    list[str],
    typer.Option("--suite", metavar="S", help="bits, boolq, piqa, openbookqa, commonsenseqa or all; may be repeated."),
]
TextOption = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="File or folder that --suite bits reads; else a sample of built-in prose."),
]
LimitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Only the first N items of each suite, in a fixed shuffled order.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Look for the items in this training data: a data folder, a run or a recipe."),
]
ItemsOption = Annotated[
    Path | None, typer.Option(metavar="FILE.JSONL", help="Write every item's log-likelihoods here, a row an item.")
]
NoCardOption = Annotated[bool, typer.Option("--no-card", help="Leave the model folder as it is.")]


def evaluate(
    model: ModelArg,
    suite: SuiteOption,
    text: TextOption = None,
    limit: LimitOption = None,
    against: AgainstOption = None,
    items: ItemsOption = None,
    no_card: NoCardOption = False,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on texts and on multiple choice.

    Results with standard errors are printed and put into the model card. --against reports which items were
    in the training data.
    """
    from moesaic.evals import evaluate as measure
    from moesaic.evals import keep_results, suite_names
    from moesaic.serve.local import load

    if text is not None and "bits" not in suite_names(suite):
        raise MoesaicError("--text is what --suite bits reads; add --suite bits, or leave --text out")
    if items is not None and not items.absolute().parent.is_dir():
        raise MoesaicError(f"--items {items}: there is no folder {items.absolute().parent}; make it first")
    training = None if against is None else _training_data(against, home)
    opened = load(model)
    with progress_on_stderr() as progress:
        results = measure(
            opened.model,
            opened.tokenizer,
            suite,
            home=home,
            text=text,
            limit=limit,
            against=training,
            progress=progress,
        )
    if as_json:
        rows = [result.row() for result in results]
        print(json.dumps({"model": str(opened.folder), "results": rows}, indent=2, ensure_ascii=False))
    else:
        _print(results)
    if not no_card:
        try:
            keep_results(opened.folder, results)
        except MoesaicError as error:
            print(f"note: {error}", file=sys.stderr)
    if items is not None:
        _write_items(items, results)


def _training_data(against: str, home: Path) -> "DataFolder":
    """The data folder itself, or that of a run or recipe. Raises MoesaicError."""
    from moesaic.data import DataFolder, data_path
    from moesaic.recipe import read_recipe

    if (Path(against) / "manifest.json").is_file():
        return DataFolder.open(Path(against))
    for run in (Path(against), Path("runs") / against):
        if (run / "recipe.toml").is_file():
            return DataFolder.open(data_path(read_recipe(str(run / "recipe.toml")), home))
    if Path(against).is_dir():
        raise MoesaicError(f"--against {against}: neither a data folder (manifest.json) nor a run (recipe.toml)")
    return DataFolder.open(data_path(read_recipe(against), home))


def _write_items(path: Path, results: Sequence["SuiteResult"]) -> None:
    rows = [
        {
            "id": answer.id,
            "log_likelihoods": answer.log_likelihoods,
            "bytes": answer.bytes,
            "label": answer.label,
            "prediction": answer.prediction,
            "prediction_by_byte": answer.prediction_by_byte,
            "cut": answer.cut,
        }
        for result in results
        for answer in result.answers
    ]
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise MoesaicError(f"cannot write --items {path}: {error.strerror}; choose another file") from error


def _print(results: Sequence["SuiteResult"]) -> None:
    """Tables of what was measured, and below them what else a reader must know."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from moesaic.evals import ChoiceScore
    from moesaic.evals.card import bits_text

    console = Console(width=None if sys.stdout.isatty() else 120)
    lines = box.HEAVY_HEAD if console.is_terminal else box.MARKDOWN
    choices = Table("suite", "items", "accuracy", "by byte", "chance", box=lines)
    texts = Table("text", "bytes", "tokens", "bits per byte", "nats per token", box=lines)
    notes = []
    for result in results:
        score = result.score
        if isinstance(score, ChoiceScore):
            plain, by_byte = (
                f"{value:.1%} ± {error:.1%}"
                for value, error in (
                    (score.accuracy, score.accuracy_error),
                    (score.accuracy_by_byte, score.accuracy_by_byte_error),
                )
            )
            choices.add_row(result.title, f"{score.items:,}", plain, by_byte, f"{score.chance:.1%}")
            if score.cut:
                notes.append(f"{result.suite}: items longer than the context, cut at their beginning: {score.cut:,}")
        else:
            bits = bits_text(score.bits_per_byte, score.standard_error)
            texts.add_row(result.title, f"{score.bytes:,}", f"{score.tokens:,}", bits, f"{score.nats_per_token:.3f}")
        notes += _overlap_lines(result)
    for table in (choices, texts):
        if table.row_count:
            console.print(table)
    for line in notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _overlap_lines(result: "SuiteResult") -> list[str]:
    found = result.overlap
    if found is None:
        return []
    lines = [
        f"{result.suite}: {len(found.found):,} of {found.items - found.too_short:,} items share 13 words in a row with "
        f"the training data ({found.share:.1%}); {found.too_short:,} are too short to check"
    ]
    if result.clean is not None:
        clean = result.clean
        lines.append(f"  without them {clean.accuracy:.1%} ± {clean.accuracy_error:.1%} on {clean.items:,} items")
    return lines + [f'  {match.item} in {match.source}: "{match.words}"' for match in found.examples]
