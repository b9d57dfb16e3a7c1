"""`moesaic plan params`"""

from typing import Annotated

import typer

from moesaic.commands.options import JsonOption, SetOption
from moesaic.commands.plan.options import SourceArg
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def params(
    source: SourceArg,
    seq_len: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Length of a sequence; default the model's context.")
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
    from moesaic.plan.params import params_sheet
    from moesaic.plan.quantity import parse_count
    from moesaic.plan.shapes import read_source
    from moesaic.plan.vision import VisionPlan, add_vision

    shape, recipe = read_source(source, values or ())
    sheet = params_sheet(shape, seq_len, pp or (recipe.layout.pp if recipe else 1), recipe)
    if vision:
        tokens = parse_count(vision_tokens, "--vision-tokens")
        add_vision(sheet, shape, VisionPlan(encoder=vision_encoder, every=vision_every, pixels=pixels), tokens, recipe)
    show(sheet, as_json, explain, html)
