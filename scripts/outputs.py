"""Put what the planner prints into the pages: every console block of docs/*.md that begins with `$ moesaic plan`.

python scripts/outputs.py            writes the pages
python scripts/outputs.py --check    says which are stale

Below each `$` line of such a block stands what that command prints at 100 columns. What is long is cut by a pipe in the
command itself, with `sed` rather than `head`: who closes a pipe early stops the program that writes into it. A block
whose first line names a file after its language (```toml scenarios.toml) is that file: commands run in a folder that
holds these files of all pages, and `recipes`.
"""

import difflib
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from shown import ROOT, output

PAGES = sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "description.md"})  # that one makes its own
BLOCK = re.compile(r"^```console\n(?=\$ moesaic plan )(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```[a-z]+ ([\w.-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PIPES = ("bash", "-o", "pipefail")  # else a command that fails before a pipe would go unseen


def render(pages: dict[Path, str]) -> dict[Path, str]:
    """The pages with real outputs. Raises SystemExit when a command fails or prints nothing."""
    seen: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        (Path(folder) / "recipes").symlink_to(ROOT / "recipes")
        for page, text in pages.items():
            for name, content in FILE.findall(text):
                if (file := Path(folder) / name).exists():
                    raise SystemExit(f"{page.name}: another page has a file {name} already; use another name")
                file.write_text(content, encoding="utf-8")

        def block(found: re.Match[str]) -> str:
            commands = [line[2:] for line in found[1].splitlines() if line.startswith("$ ")]
            for command in commands:
                if command not in seen:
                    seen[command] = printed(command, Path(folder))
            shown = (f"$ {command}\n{seen[command]}".rstrip() for command in commands)
            return "```console\n" + "\n\n".join(shown) + "\n```"

        return {page: BLOCK.sub(block, text) for page, text in pages.items()}


def printed(command: str, folder: Path) -> str:
    """What a command prints, without blanks at the ends of lines."""
    text = output(command, 100, folder, PIPES)
    if not text and ">" not in command:
        raise SystemExit(f"{command}\nprints nothing: does its pipe still find what it looks for?")
    if "|" in command and re.search(r"^(error:|Usage:)", text, re.MULTILINE | re.IGNORECASE):
        raise SystemExit(f"{command}\nfailed:\n{text}")
    return "\n".join(line.rstrip() for line in text.splitlines())


def main(arguments: list[str]) -> int:
    """Write the pages, or compare with `--check`. Returns the exit status."""
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = {page: text for page, text in render(old).items() if text != old[page]}
    if arguments != ["--check"]:
        for page, text in stale.items():
            page.write_text(text, encoding="utf-8")
        return 0
    for page, text in stale.items():
        print(*difflib.unified_diff(old[page].splitlines(), text.splitlines(), "committed", "now", lineterm=""), sep="\n")
        print(f"docs/{page.name} is stale; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
