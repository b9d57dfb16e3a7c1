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

    from moesaic.model import Transformer

DATA_HOME = Path("runs") / "data"
SAMPLE_CHARACTERS = 2000  # of each text that a loss is measured on
ROUNDING = 0.02  # of the spread of the logits: what sums in another order may do, in bf16 too
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
    from moesaic.interop import family_for, layer_ranges, load_model, save_model
    from moesaic.interop import upcycle as upcycled
    from moesaic.interop.folder import check_place
    from moesaic.interop.sources import card, card_licence, check_tokenizer
    from moesaic.interop.weights import stored_dtype
    from moesaic.serve.local import find_model

    folder = find_model(model)
    if out.resolve() == folder.resolve():
        raise ModelError(f"{out} is the model itself; choose another place")
    check_place(out)
    dense = load_model(folder)
    check_tokenizer(folder, dense)
    new = upcycled(
        dense,
        experts,
        top_k,
        layers=None if layers is None else layer_ranges(layers),
        noise=noise,
        n_kv_heads=kv_heads,
        seed=seed,
    )
    report = _compared(folder, dense, new)
    if family_for(new.config).model_type == "moesaic":
        _say("experts in some layers only: other engines read it after `moesaic export`")
    kind = _dtype(dtype) or stored_dtype(dense)
    page = card(new, f"{folder.name}, {experts} experts", str(model), card_licence(folder), "Upcycled")
    save_model(new, out, tokenizer_folder=folder, card=page, dtype=kind)
    report |= {"model": str(out), "parameters": new.config.parameters(), "active": new.config.active_parameters}
    if as_json:
        print(json.dumps(report))
        return
    largest, spread = report["logit_difference"], report["logit_scale"]
    print(f"largest difference of a logit: {largest:.2g}; logits spread by {spread:.2g}")
    if "bits_per_byte" in report:
        before, after = report["bits_per_byte"]
        print(f"bits per byte of the built-in prose: {before:.3f} before, {after:.3f} after: training has to mend that")
    print(f"{out}: {report['parameters'] / 1e6:,.1f} M parameters, {report['active'] / 1e6:,.1f} M active")


def _compared(folder: Path, dense: "Transformer", new: "Transformer") -> dict[str, Any]:
    """Logits of both on a few texts; their losses too, where the logits differ by more than rounding."""
    from moesaic.data import Tokenizer
    from moesaic.evals import bits_per_byte_of_text, compare_logits, read_text_documents

    tokenizer = Tokenizer.load(folder)
    texts = read_text_documents(None, DATA_HOME)
    difference = compare_logits(dense, new, tokenizer, texts[:4])
    report: dict[str, Any] = {"logit_difference": difference.largest, "logit_scale": difference.scale}
    if difference.largest > ROUNDING * difference.scale:
        _say("measuring the loss before and after on the built-in prose")
        window = min(512, new.config.context)
        sample = [text[:SAMPLE_CHARACTERS] for text in texts[:8]]
        report["bits_per_byte"] = [
            bits_per_byte_of_text(m, tokenizer, sample, window=window).bits_per_byte for m in (dense, new)
        ]
    return report


def _dtype(name: str | None) -> "torch.dtype | None":
    if name is None:
        return None
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr)
