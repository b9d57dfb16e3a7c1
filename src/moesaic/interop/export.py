"""`moesaic export`: a model folder for engines that are not ours."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from moesaic.errors import ModelError
from moesaic.interop.families import OURS, family_for
from moesaic.interop.folder import check_place, load_model, save_model, stop_ids_of
from moesaic.interop.gguf_write import write_gguf
from moesaic.interop.sources import has_vision
from moesaic.interop.upcycle import upcycle
from moesaic.interop.weights import stored_dtype
from moesaic.model import Transformer

Say = Callable[[str], None]


def export_model(
    folder: Path, to: Literal["hf", "gguf"], out: Path, dtype: torch.dtype | None = None, say: Say = print
) -> None:
    """Write the model of `folder` as a Hugging Face folder that no code of ours is needed for, or as a GGUF file.

    Experts in some layers only become experts in all, the dense blocks repeated. Weights keep their type unless `dtype`
    is given. Raises ModelError.
    """
    if out.resolve() == folder.resolve():
        raise ModelError(f"{out} is the model itself; choose another place")
    if to == "hf":
        check_place(out)
    if has_vision(folder):
        say("the vision part stays behind: only the text trunk is exported")
    model = widened(load_model(folder), say)
    kind = dtype or stored_dtype(model)
    if to == "gguf":
        write_gguf(model, out, folder, stop_ids_of(folder), kind)
        return
    if family_for(model.config) is OURS:
        raise ModelError(
            f"{folder}: no architecture of transformers has this combination of features; only moesaic computes it"
        )
    page = folder / "README.md"
    card = page.read_text(encoding="utf-8") if page.is_file() else None
    save_model(model, out, tokenizer_folder=folder, card=card, dtype=kind)
    if (folder / "evaluation.json").is_file():  # what the card's table is made from
        shutil.copyfile(folder / "evaluation.json", out / "evaluation.json")


def widened(model: Transformer, say: Say) -> Transformer:
    """`model` with experts in every layer, where other engines cannot have them in some."""
    config = model.config
    if not (config.sparse_layers and config.dense_layers) or family_for(config) is not OURS:
        return model
    wide = upcycle(model, config.n_experts, config.top_k)
    say(
        f"experts are in {len(config.sparse_layers)} of {config.n_layers} layers; other engines want them in all: the "
        f"dense blocks are repeated {config.n_experts} times, {config.parameters() / 1e6:,.0f} M parameters become "
        f"{wide.config.parameters() / 1e6:,.0f} M"
    )
    return wide
