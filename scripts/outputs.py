"""Put what the planner prints into the pages: every console block of docs/*.md that begins with `$ moesaic plan`.

python scripts/outputs.py            writes the pages
python scripts/outputs.py --check    says which are stale

Below each `$` line of such a block stands what that command prints at 100 columns. What is long is cut by a pipe in the
command itself; what stands before the pipe runs once, however many blocks cut it. A block whose first line names a file
after its language (```toml scenarios.toml) is that file: commands run in a folder that holds these files of all pages,
and `recipes`.
"""

import difflib
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from shown import ROOT, output

PAGES = sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "description.md"})  # that one makes its own
BLOCK = re.compile(r"^```console\n(?=\$ moesaic plan )(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```[a-z]+ ([\w.-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def render(pages: dict[Path, str]) -> dict[Path, str]:
    """The pages with real outputs. Raises SystemExit when a command fails or prints nothing."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipes").symlink_to(ROOT / "recipes")
        for page, text in pages.items():
            for file, content in FILE.findall(text):
                if (folder / file).exists():
                    raise SystemExit(f"{page.name}: another page has a file {file} already; use another name")
                (folder / file).write_text(content, encoding="utf-8")
        whole = cache(lambda command: output(command, 100, folder))
        return {page: BLOCK.sub(lambda found: block(found[1], whole), text) for page, text in pages.items()}


def block(text: str, whole: Callable[[str], str]) -> str:
    """A block with what its commands print now; `whole` runs one without its pipe."""
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    shown = (f"$ {command}\n{printed(command, whole)}".rstrip() for command in commands)
    return "```console\n" + "\n\n".join(shown) + "\n```"


def printed(command: str, whole: Callable[[str], str]) -> str:
    """What a command prints, without blanks at the ends of lines."""
    program, _, pipe = command.partition(" | ")
    text = whole(program)
    if pipe:
        if re.match("error:|usage:", text, re.IGNORECASE):
            raise SystemExit(f"{program}\nfailed:\n{text}")
        text = subprocess.run(["sh", "-c", pipe], input=text, capture_output=True, text=True, check=True).stdout
    if not text.strip() and ">" not in command:
        raise SystemExit(f"{command}\nprints nothing: does its pipe still find what it looks for?")
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def main(arguments: list[str]) -> int:
    """Write the pages, or compare with `--check`. Returns the exit status."""
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = {page: text for page, text in render(old).items() if text != old[page]}
    if arguments != ["--check"]:
        for page, text in stale.items():
            page.write_text(text, encoding="utf-8")
        return 0
    for page, text in stale.items():
        print(
            *difflib.unified_diff(old[page].splitlines(), text.splitlines(), "committed", "now", lineterm=""), sep="\n"
        )
        print(f"docs/{page.name} is stale; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
