"""The data card: what is in a data folder, under which licences, and what was left out."""

from collections.abc import Sequence
from typing import Any


def data_card(manifest: dict[str, Any]) -> str:
    """README.md of a data folder, from its manifest (see `build`)."""
    sources = manifest["sources"]
    counted = ("documents", "tokens", "bytes")
    columns = ("source", "kind", "licence", "epochs", *counted, *(f"held-out {c}" for c in counted))
    lines = [
        f"# Data of {manifest['recipe']}",
        "",
        f"Built by moesaic; vocabulary of {manifest['vocab_size']:,} entries. "
        "Shards are in Megatron's `.bin/.idx` format.",
        "",
        _row(columns),
        _row(["---"] * len(columns)),
    ]
    for s in sources:
        counts = [f"{s[part][key]:,}" for part in ("train", "held_out") for key in counted]
        lines.append(_row([s["name"], s["kind"], s["licence"], str(s["epochs"]), *counts]))
    lines += [
        "",
        "Bytes are UTF-8 bytes of the texts, and of the message contents of dialogues (roles count none).",
        "Tokens include the end-of-text token of each text and the control tokens of each turn.",
        "",
        "## What was left out",
        "",
        "| source | read | dropped |",
        "| --- | --- | --- |",
    ]
    for s in sources:
        reasons = [f"{n:,} {reason}" for reason, n in s["dropped"].items()]
        reasons += [f"{n:,} files {reason}" for reason, n in s["files_passed_over"].items()]
        lines.append(f"| {s['name']} | {s['read']:,} | {'; '.join(reasons) or 'nothing'} |")
    lines += ["", "## Origins", ""]
    lines += [f"- {s['name']}: `{s['origin']}`" + (f", sha256 `{s['sha256']}`" if s["sha256"] else "") for s in sources]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
