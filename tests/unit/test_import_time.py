"""What must stay quick to import stays free of what is slow: torch, NumPy, transformers, rich, Jinja."""

import subprocess
import sys

import pytest


def imported(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*{{m.partition('.')[0] for m in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import moesaic, moesaic.recipe, moesaic.cli",
        "import moesaic.train",
        "import moesaic; moesaic.read_recipe('pocket')",
        "import moesaic.plan.page, moesaic.plan.quantity, moesaic.commands.plan.show",
        "import moesaic.recipe.show, moesaic.recipe.overrides, moesaic.recipe.docs",
        "from moesaic.cli import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit: pass",
        "from moesaic.cli import main\ntry:\n    main(['recipe', 'show', 'pocket'])\nexcept SystemExit: pass",
        "from moesaic.cli import main\ntry:\n    main(['upcycle', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_planning_and_help_load_nothing_heavy(code: str) -> None:
    assert not imported(code) & {"torch", "numpy", "transformers", "tokenizers", "rich", "jinja2"}


@pytest.mark.parametrize(
    "code",
    [
        "import moesaic.plan.api, moesaic.plan.audit",
        "import moesaic; moesaic.plan.train_plan('gpt4', 'a100-80', 24_960)",
    ],
)
def test_the_planner_needs_numpy_and_nothing_heavier(code: str) -> None:
    assert not imported(code) & {"torch", "scipy", "transformers", "tokenizers", "rich", "jinja2", "pint"}


def test_train_can_be_called_before_and_after_its_package_is_imported() -> None:
    code = """
import moesaic, types
first = moesaic.train
import moesaic.durable
assert moesaic.train is first and isinstance(first, types.ModuleType) and callable(first)
assert "train" in dir(moesaic) and "load" in dir(moesaic)
try: moesaic.nothing
except AttributeError as error: assert "no attribute 'nothing'" in str(error)
else: raise AssertionError
"""
    imported(code)
