"""One tiny model for all tests of the server, and a server that most of them share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Serving, make_model, serving, until


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def shared_server(served_model: Path) -> Iterator[Serving]:
    with serving(served_model) as found:
        yield found


@pytest.fixture
def server(shared_server: Serving) -> Iterator[Serving]:
    """The shared server, left empty by each test."""
    yield shared_server
    shared_server.steps.release()
    until(shared_server.idle, "an empty engine after the test")
