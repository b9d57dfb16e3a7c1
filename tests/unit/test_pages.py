"""Pages agree with the program: links lead somewhere, every verb has a page, commands in code blocks exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from moesaic.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
VERB_PAGES = {"recipe": "recipe-verbs"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_verb_has_a_page() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for verb in verbs:
        assert (ROOT / "docs" / f"{VERB_PAGES.get(verb, verb)}.md").is_file(), verb


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_on_a_page_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands_shown = "\n".join(
        line for block in CONSOLE.findall(text) for line in block.splitlines() if line[:2] == "$ "
    )
    for block in [*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), commands_shown]:
        for words in re.findall(r"moesaic ((?:[a-z]+ )?[a-z]+)([^\n|]*)", block):
            group = get_command(app)
            for word in words[0].split():
                commands = getattr(group, "commands", None)
                if commands is None:
                    break
                assert word in commands, f"moesaic {words[0]}"
                group = commands[word]
            known = {option for parameter in group.params for option in parameter.opts}
            used = set(re.findall(r"(?<=\s)--[a-z-]+", words[1].partition("#")[0]))
            assert used <= known, f"moesaic {words[0]}: {sorted(used - known)}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name.startswith("plan")], ids=lambda p: p.name)
def test_what_the_planner_prints_is_generated(page: Path) -> None:
    """A table with the planner's rules, in a block without a command, is a copy that grows stale."""
    blocks = re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        assert language, "a block without a language: which command prints it?"
        assert language == "console" or not re.search("[─━]{4}|^note: ", block, re.MULTILINE), language
