"""`moesaic generate` and `moesaic chat`"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.errors import MoesaicError

if TYPE_CHECKING:
    from moesaic.serve.local import SamplingOptions

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, a run folder or the name of a run.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Choose among this many tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that reach this probability.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 discourages repeating.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens at most.")]
Seed = Annotated[int, typer.Option(help="Of the draw.")]
PromptArg = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="Text to continue; without it, standard input.")
]
BatchOption = Annotated[Path | None, typer.Option(metavar="IN.JSONL", help="Answer rows with `prompt` or `messages`.")]
OutOption = Annotated[Path | None, typer.Option(metavar="OUT.JSONL", help="Where the answers of --batch go.")]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")]


def generate(
    model: ModelArg,
    prompt: PromptArg = None,
    batch: BatchOption = None,
    out: OutOption = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    penalty: Penalty = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 0,
    as_json: JsonOption = False,
) -> None:
    """Continue a text, or answer a file of prompts."""
    options = _sampling(temperature, top_k, top_p, min_p, penalty, max_tokens, seed)
    if (batch is None) != (out is None):
        raise MoesaicError("--batch and --out go together: give both, or neither")
    if batch is not None and prompt is not None:
        raise MoesaicError("--batch reads its prompts from the file; leave PROMPT out")
    from moesaic.serve.local import load
    from moesaic.serve.terminal import answer_rows, stream_text

    opened = load(model)
    if batch is not None and out is not None:
        answers = answer_rows(opened, batch, out, _count, **options)
        report = {"out": str(out), "answered": answers.answered, "failed": answers.failed}
        print(file=sys.stderr)
        print(json.dumps(report) if as_json else f"{answers.answered} answers in {out}, {answers.failed} failed")
        raise typer.Exit(2 if answers.failed else 0)
    text = sys.stdin.read() if prompt is None else prompt
    if as_json:
        print(json.dumps({"prompt": text, **vars(opened.reply(text, **options))}, ensure_ascii=False))
    else:
        stream_text(opened, text, sys.stdout, **options)


def chat(
    model: ModelArg,
    system: SystemOption = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    penalty: Penalty = 1.0,
    max_tokens: MaxTokens = 256,
    seed: Seed = 0,
) -> None:
    """Talk to a model.

    /reset forgets, /quit ends, Ctrl-C stops an answer; questions may also be piped in, one a line.
    """
    options = _sampling(temperature, top_k, top_p, min_p, penalty, max_tokens, seed)
    from moesaic.serve.local import load
    from moesaic.serve.terminal import Chat

    mark = "> " if sys.stdin.isatty() else ""

    def ask() -> str:
        return input(mark)

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    Chat(load(model), ask, sys.stdout, note, system, **options).run()


def _sampling(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, max_tokens: int, seed: int
) -> "SamplingOptions":
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": penalty,
        "max_tokens": max_tokens,
        "seed": seed,
    }


def _count(done: int) -> None:
    print(f"\r{done} answered", end="", file=sys.stderr, flush=True)
