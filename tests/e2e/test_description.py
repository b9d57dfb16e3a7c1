"""docs/description.md shows what its commands print today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_output_on_the_page_is_what_its_command_prints() -> None:
    command = [sys.executable, "scripts/description.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
