"""A wheel made from the sdist, installed alone: the command runs, recipes come along, no torch is needed."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

import moesaic

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, folder: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sdist, and a wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, folder=out)
    return out


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment that holds this wheel; its dependencies are borrowed from ours."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    [wheel] = dist.glob("*.whl")
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, folder=home)
    [site] = home.glob("lib/python*/site-packages")
    # A path in a .pth is searched last, and .pth files there (our editable install) are not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home / "bin"


def test_the_sdist_holds_what_its_makefile_needs(dist: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "README.md", "LICENSE", "pyproject.toml", "scripts/install.sh", "tests/conftest.py"}
    assert wanted <= names
    assert not [n for n in names if n.startswith((".venv", "runs"))]


def test_the_installed_command_runs_with_its_own_recipes(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "moesaic", "--version", folder=tmp_path).strip() == moesaic.__version__
    shown = run(installed / "moesaic", "recipe", "show", "pocket", folder=tmp_path)
    assert 'name = "pocket"' in shown
    program = "import moesaic.recipe as r; print(r.__file__, *r.recipe_files().values(), sep='\\n')"
    files = run(installed / "python", "-c", program, folder=tmp_path).splitlines()
    assert len(files) == 8
    assert all(Path(f).is_relative_to(installed.parent) for f in files)


def test_recipes_need_no_torch(installed: Path, tmp_path: Path) -> None:
    program = "import sys, moesaic, moesaic.cli; moesaic.read_recipe('gpt4'); print('torch' in sys.modules)"
    assert run(installed / "python", "-c", program, folder=tmp_path).strip() == "False"


def test_the_wheel_holds_every_file_that_is_not_code(installed: Path, tmp_path: Path) -> None:
    program = "import moesaic; print(moesaic.__path__[0])"
    package = Path(run(installed / "python", "-c", program, folder=tmp_path).strip())
    source = ROOT / "src" / "moesaic"
    kinds = {".html", ".css", ".js", ".svg", ".xz", ".typed", ".jinja", ".cpp", ".h"}
    data = [p.relative_to(source) for p in source.rglob("*") if p.suffix in kinds]
    assert data
    assert all((package / name).is_file() for name in data)
