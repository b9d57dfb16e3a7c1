"""What a command prints, for the pages that show it. `description.py` and `outputs.py` take it from here."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def output(command: str, columns: int = 110, folder: Path = ROOT) -> str:
    """Both streams of a command, `columns` characters wide, run in `folder` with the programs of this environment.

    Status 2 passes: it is an error that the user can mend, and a page may show one. Any other raises SystemExit.
    """
    source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])  # this checkout's
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": source, "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 2):
        raise SystemExit(f"{command}\nfailed with {done.returncode}:\n{done.stdout}")
    return done.stdout.rstrip()
