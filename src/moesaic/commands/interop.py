"""`moesaic import`, `moesaic export` and `moesaic upcycle`"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.talk import ModelArg, Seed
from moesaic.errors import ModelError

if TYPE_CHECKING:
    import torch

DATA_HOME = Path("runs") / "data"
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Store weights so; by default as they are stored now."),
]
OutArg = Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write; replaced when it exists.")]


def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a .gguf file, package:NAME or hf:owner/name.")
    ],
    out: OutArg,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in weights from elsewhere.

    Llama, Mistral, Mixtral, Qwen3, Qwen3-MoE and OLMoE folders, and GGUF files of llama's kinds. Code is never run,
    pickles are refused; package: and hf: are the only ones that fetch anything.
    """
    from moesaic.interop import import_model

    model = import_model(source, out, DATA_HOME, _dtype(dtype), _say)
    config = model.config
    report = {"model": str(out), "parameters": config.parameters(), "active": config.active_parameters}
    print(
        json.dumps(report)
        if as_json
        else f"{out}: {config.parameters() / 1e6:,.1f} M parameters; talk to it with: moesaic chat {out}"
    )


def export(
    model: ModelArg,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder (hf) or file (gguf) to write.")],
    to: Annotated[
        Literal["hf", "gguf"], typer.Option("--to", help="A folder for transformers and vLLM, a file for llama.cpp.")
    ],
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model for other engines."""
    from moesaic.interop.export import export_model
    from moesaic.serve.local import find_model

    export_model(find_model(model), to, out, _dtype(dtype), _say)
    print(json.dumps({"model": str(out), "to": to}) if as_json else out)


def upcycle(
    model: ModelArg,
    out: OutArg,
    experts: Annotated[int, typer.Option(help="Experts in each upcycled layer.")] = 16,
    top_k: Annotated[int, typer.Option(help="Experts that each token visits.")] = 2,
    layers: Annotated[
        str | None, typer.Option(metavar="A-B,..", help="Only these layers, counted from 0; default: all.")
    ] = None,
    noise: Annotated[float, typer.Option(help="Noise on each expert, as a share of the weights' deviation.")] = 0.0,
    kv_heads: Annotated[
        int | None, typer.Option(help="Pool key/value heads to so many; 1 is multi-query. Changes what is computed.")
    ] = None,
    dtype: DtypeOption = None,
    seed: Seed = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a dense model into a mixture of experts that computes the same.

    Each dense block becomes so many copies behind a new router. The logits of both are compared before the folder is
    written, and bits per byte where pooling or noise changed them.
    """
    from moesaic.interop.upcycling import upcycle_folder
    from moesaic.interop import layer_ranges
    from moesaic.serve.local import find_model

    chosen = None if layers is None else layer_ranges(layers)
    report = upcycle_folder(
        find_model(model), out, experts, top_k, chosen, noise, kv_heads, seed, _dtype(dtype), _say
    )
    print(json.dumps(report) if as_json else _upcycled(report))


def _upcycled(report: dict[str, Any]) -> str:
    return str(report)


def _dtype(name: str | None) -> "torch.dtype | None":
    if name is None:
        return None
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr)
