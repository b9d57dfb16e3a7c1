"""`moesaic plan params`"""

from typing import Annotated

import typer

from moesaic.commands.options import JsonOption, SetOption
from moesaic.commands.plan.options import SourceArg
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def params(
    source: SourceArg,
    seq_len: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Length of a sequence, 8k; default the model's context.")
    ] = None,
    pp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pipeline stages; default the recipe's, else 1.")
    ] = None,
    vision: Annotated[bool, typer.Option("--vision", help="Price the vision addition too.")] = False,
    vision_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="One gated cross-attention layer before each N layers.")
    ] = 8,
    vision_tokens: Annotated[str, typer.Option(metavar="TOKENS", help="Tokens of the vision stage.")] = "2T",
    vision_encoder: Annotated[str, typer.Option(metavar="NAME", help="Image encoder: its size.")] = "vit-bigg",
    pixels: Annotated[int, typer.Option(min=1, metavar="N", help="Height and width of an image.")] = 448,
    values: SetOption = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Parameters, FLOPs per token, cache and bytes of a model.

    FLOPs are counted under every convention; a dense twin and GPT-3 stand beside it.
    """
    from moesaic.plan import params_plan

    sheet = params_plan(
        source, seq_len=seq_len, pp=pp, vision=vision, vision_every=vision_every, vision_tokens=vision_tokens,
        vision_encoder=vision_encoder, pixels=pixels, values=values or (),
    )  # fmt: skip
    show(sheet, as_json, explain, html)
