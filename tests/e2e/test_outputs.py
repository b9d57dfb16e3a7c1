"""The pages of the planner show what its commands print today."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_output_in_the_pages_is_what_its_command_prints() -> None:
    command = [sys.executable, "scripts/outputs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
