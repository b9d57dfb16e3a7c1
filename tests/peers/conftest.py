"""The option that names a trained model, models made once, and the table at the end."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peers.subjects import Subject, make_subject

TABLE = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pocket", default="runs/pocket/model", help="model folder of a trained pocket model")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(TABLE, [])
    if lines:
        terminalreporter.write_sep("=", "peers")
        terminalreporter.write_line("| model | peer | prompts | equal tokens | ties | largest log-prob difference |")
        terminalreporter.write_line("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """A model by name, made once."""

    @cache
    def make(name: str) -> Subject:
        return make_subject(name, tmp_path_factory.mktemp(name), Path(request.config.getoption("--pocket")))

    return make


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[str]:
    """Rows of the table that stands at the end of the report."""
    return request.config.stash.setdefault(TABLE, [])
