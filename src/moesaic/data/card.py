"""The data card: what is in a data folder, under which licences, and what was left out."""

from typing import Any


def data_card(manifest: dict[str, Any]) -> str:
    """README.md of a data folder, from its manifest (see `build`)."""
    sources = manifest["sources"]
    lines = [
        f"# Data of {manifest['recipe']}",
        "",
        f"Built by moesaic; vocabulary of {manifest['vocab_size']:,} entries. Shards are in Megatron's `.bin/.idx` format.",
        "",
        "| source | kind | licence | epochs | documents | tokens | bytes | held out (documents / tokens / bytes) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in sources:
        train, held = s["train"], s["held_out"]
        lines.append(
            f"| {s['name']} | {s['kind']} | {s['licence']} | {s['epochs']} | {train['documents']:,} | {train['tokens']:,} "
            f"| {train['bytes']:,} | {held['documents']:,} / {held['tokens']:,} / {held['bytes']:,} |"
        )
    lines += [
        "",
        "Bytes are UTF-8 bytes of the texts, and of the message contents of dialogues (roles and control tokens not counted).",
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
    lines += [
        f"- {s['name']}: `{s['origin']}`" + (f", sha256 `{s['sha256']}`" if s["sha256"] else "")
        for s in sources
    ]
    return "\n".join(lines) + "\n"
