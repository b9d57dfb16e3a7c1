"""The end of a run: a standard model folder with a card that says what the model is and how it was made."""

from pathlib import Path

import torch

from moesaic.data import DataFolder, Ledger
from moesaic.interop import save_model
from moesaic.model import Transformer
from moesaic.recipe import Recipe
from moesaic.train.metrics import read_metrics
from moesaic.train.run_folder import RunFolder


def write_model(folder: RunFolder, recipe: Recipe, model: Transformer, data: DataFolder, ledger: Ledger) -> Path:
    """Write `model/` of the run; returns its path."""
    card = model_card(folder, recipe, model, ledger)
    save_model(model, folder.model, tokenizer_folder=data.path / "tokenizer", card=card, dtype=torch.float32)
    return folder.model


def model_card(folder: RunFolder, recipe: Recipe, model: Transformer, ledger: Ledger) -> str:
    """Markdown: licence, data with epochs, recipe hash, evaluation with errors, expert load, limits."""
    config = model.config
    lines = [
        "---",
        "license: other",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {recipe.name}",
        "",
        recipe.about,
        "",
        f"{config.summary}. Trained with moesaic, recipe hash `{recipe.system_hash()}`, on {ledger.total:,} tokens.",
        "",
        "## Data",
        "",
        "| source | kind | licence | tokens trained | epochs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for source in recipe.data.sources:
        tokens, epochs = ledger.tokens[source.name], ledger.epochs(source.name)
        lines.append(
            f"| {source.name} | {source.kind} | {source.licence} | {tokens:,} | {epochs:.2f} of {source.epochs} |"
        )
    begun = [s.init for s in recipe.stages if s.init is not None]
    also = f" and from that of {', '.join(Path(b).name for b in begun)}, whose weights it began with" if begun else ""
    lines += ["", f"The weights' licence follows from these{also}.", "", "## Evaluation", ""]
    metrics = read_metrics(folder.metrics)
    evaluations = [m for m in metrics if m.get("event") == "evaluation"]
    lines += [
        "| after stage | held-out source | bits per byte | standard error |",
        "| --- | --- | --- | --- |",
    ]
    for event in evaluations:
        for source_name, bits in event["bits_per_byte"].items():
            error = event["standard_error"][source_name]
            lines.append(f"| {event['stage']} | {source_name} | {bits:.3f} | {error:.3f} |")
    loads = [m["load"] for m in metrics if m.get("load")]
    if loads:
        lines += ["", "## Expert load at the last step", ""]
        lines.append(
            "Share of assignments, least and most used expert of each layer (even would be "
            f"{1 / config.n_experts:.3f}):"
        )
        lines.append("")
        lines += [
            f"- layer {i}: {min(row):.3f} to {max(row):.3f}"
            for i, row in zip(config.sparse_layers, loads[-1], strict=True)
        ]
    lines += [
        "",
        "## Limits",
        "",
        f"{_knowledge(bool(begun))}, and states falsehoods with confidence. For study, not for use on people.",
        "",
    ]
    return "\n".join(lines)


def _knowledge(begun: bool) -> str:
    if begun:
        return "What the model knew that it began with, changed by the data above, without safety tuning of ours"
    return "Trained on the data above and nothing else. It has no knowledge beyond them, no safety tuning"
