"""Files are written whole or not at all, and nothing of the user's is replaced."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from kfac_ref import files
from kfac_ref.experiments import script


def full(*arguments: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One file


def test_a_new_file_is_written_with_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    contents: dict[str, files.Content] = {"text": "ä\n", "bytes": b"\xff\n", "call": lambda file: file.write(b"x")}
    for name, content in contents.items():
        files.write(tmp_path / name, content)
    assert [(tmp_path / name).read_bytes() for name in contents] == ["ä\n".encode(), b"\xff\n", b"x"]
    assert {(tmp_path / name).stat().st_mode for name in contents} == {(tmp_path / "other").stat().st_mode}
    assert names(tmp_path) == ["bytes", "call", "other", "text"]


def test_a_file_that_is_there_is_replaced_only_if_it_is_the_own_one_or_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(files.OverwriteError, match=rf"^{path} exists and is not replaced; .* --force$"):
        files.write(path, "theirs")
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["a"]
    files.write(path, "mine")                                               # loses nothing
    files.write(path, "own", own=True)
    assert path.read_text() == "own"
    files.write(path, "by force", force=True)
    assert path.read_text() == "by force"


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_symbolic_link_is_never_written_through(tmp_path: Path, target: str) -> None:
    folder, path = tmp_path / "folder", tmp_path / "folder" / "a"
    folder.mkdir()
    (tmp_path / "there").write_text("mine")
    path.symlink_to(tmp_path / target)
    for own, content in ((False, "theirs"), (True, "theirs"), (False, "mine")):
        with pytest.raises(files.OverwriteError, match=rf"^{path} is a symbolic link to {tmp_path / target}, which "):
            files.write(path, content, own=own)
    files.write(path, "theirs", force=True)
    assert (path.read_text(), path.is_symlink()) == ("theirs", False)
    assert (tmp_path / "there").read_text() == "mine"
    assert names(tmp_path) == ["folder", "there"]


def test_a_folder_or_a_device_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    for path in (tmp_path, Path(os.devnull), tmp_path / "link"):
        with pytest.raises(files.OverwriteError, match=f"^{path} exists and is not a regular file$"):
            files.refuse(path, own=True, force=True)


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_file_and_nothing_else_and_names_the_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match=rf"cannot write {path} \(No space left on device\)") as caught:
            files.write(path, "after", own=True)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a"
    with pytest.raises(OSError, match=rf"cannot write {path} \(No such file or directory\)"):
        files.write(path, "")


def test_at_every_call_to_the_disk_the_place_holds_the_old_or_the_new(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "a", []
    path.write_text("before")

    def looked(owner: Any, name: str) -> Any:
        call = getattr(owner, name)

        def look(*arguments: Any) -> Any:
            calls.append((name, path.read_text()))
            return call(*arguments)

        return look

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace")):
            patch.setattr(owner, name, looked(owner, name))
        files.write(path, "after", own=True)
    # The content is on the disk before it gets the name, and the name after that.
    assert calls == [("fsync", "before"), ("replace", "before"), ("fsync", "after")]


# Several


def test_several_files_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    contents = {path: "after" for path in paths}
    for path in paths[:2]:
        path.write_text("before")

    def broken(file: Any) -> None:
        full()

    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'c'} "):
        files.write_all({**contents, paths[2]: broken}, own=True)
    paths[2].symlink_to(tmp_path / "nowhere")
    with pytest.raises(files.OverwriteError, match=f"^{tmp_path / 'c'} is a symbolic link"):
        files.write_all(contents, own=True)
    assert [path.read_text() for path in paths[:2]] == ["before"] * 2
    assert names(tmp_path) == ["a", "b", "c"]
    files.write_all(contents, force=True)
    assert [path.read_text() for path in paths] == ["after"] * 3


# A picture with its numbers


def save(folder: Path, value: float = 1.0, **options: Any) -> None:
    figure = Figure(figsize=(1, 1))
    figure.supxlabel(f"is {value}")
    script.save(figure, {"value": value, "nothing": float("nan"), "by number": {1: [2]}}, folder / "a", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_picture_and_its_numbers_replace_those_of_an_earlier_call(tmp_path: Path) -> None:
    save(tmp_path, 1.0, formats=("png", "pdf"), texts={"md": "one"})
    save(tmp_path, 2.0, texts={"md": "two"})
    save(tmp_path, 3.0, formats=("png", "pdf"), texts={"md": "three"})          # the pdf is still known
    assert names(tmp_path) == ["a.json", "a.md", "a.pdf", "a.png"]
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["value"], found["nothing"], found["caption"]) == (3.0, None, "is 3.0")
    assert (tmp_path / "a.md").read_text() == "three"
    for name in ("a.md", "a.pdf", "a.png"):
        assert found["sha256"][name] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def changed(path: Path) -> None:
    """Change a file as a user does."""
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"value": 1.0', '"value": 1.5'))
    else:
        path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("name", ["a.json", "a.png", "a.md"])
@pytest.mark.parametrize("how", ["foreign", "changed", "a link"])
def test_what_an_earlier_call_did_not_write_is_refused_and_all_is_as_before(tmp_path: Path, name: str,
                                                                            how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / name
    if how == "foreign":
        path.write_text('{"value": 1}')
    else:
        save(folder, texts={"md": "one"})
        if how == "changed":
            changed(path)
        else:
            path.replace(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    before, elsewhere = contents(folder), path.read_bytes()
    with pytest.raises(files.OverwriteError, match=f"^{path} (exists and is not replaced|is a symbolic link)"):
        save(folder, 2.0, texts={"md": "two"})
    assert contents(folder) == before
    save(folder, 2.0, texts={"md": "two"}, force=True)
    assert json.loads((folder / "a.json").read_text())["value"] == 2.0
    assert how != "a link" or (tmp_path / "elsewhere").read_bytes() == elsewhere
    save(folder, 3.0, texts={"md": "three"})                                    # now they are known


def test_a_full_disk_leaves_the_old_picture_with_its_old_numbers(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    before, fsync, left = contents(tmp_path), os.fsync, iter([True])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: fsync(handle) if next(left, False) else full())
        with pytest.raises(OSError, match=r"cannot write .*a\.png \(No space left on device\)"):
            save(tmp_path, 2.0)
    assert contents(tmp_path) == before
    save(tmp_path, 2.0)


# The scripts of figures/

SCRIPT = """
import sys
from pathlib import Path
from matplotlib.figure import Figure
from kfac_ref.experiments import script

def main(out, quick, formats, force):
    print("computed")
    script.save(Figure(figsize=(1, 1)), {}, out / "small", formats, force)
    return 0

script.start(main, "Draw.", sys.argv[0])
"""


@pytest.mark.slow
def test_a_script_refuses_before_it_computes(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SCRIPT)
    out = tmp_path / "out"

    def run(*options: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "small.py", "--out", str(out), *options], cwd=tmp_path,
                              env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])},
                              capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert run() == run() == (0, "computed\n", "")
    (out / "small.png").write_text("mine")
    status, printed, error = run()
    assert (status, printed) == (1, "")
    assert error.startswith(f"small.py: {out / 'small.png'} exists and is not replaced;")
    assert (out / "small.png").read_text() == "mine"
    assert run("--force") == run() == (0, "computed\n", "")
    assert (out / "small.png").read_bytes().startswith(b"\x89PNG")


# Locks and probes


def test_a_lock_or_a_probe_touches_no_file_of_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lock = folder / script.LOCK
    lock.write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    script.make_folder(folder)
    assert names(folder) == [script.LOCK]
    with script.locked(folder):
        assert lock.read_text() == "mine"
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(files.OverwriteError, match=f"^{lock} is a symbolic link"), script.locked(folder):
        pass
    assert lock.read_text() == "mine"


# Reading JSON


@pytest.mark.parametrize(("content", "word"), [
    (b"", "is not JSON: "), (b"{", "is not JSON: "), (b"[1]", "must hold an object, got list"), (b"3", "got int"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: 'c' is given twice"), (b'{"a": NaN}', "NaN is not a JSON value"),
    (b'{"a": -Infinity}', "-Infinity is not a JSON value"), (b"\xff\xfe", "is not JSON: .*decode"),
    (b'{"a": ' + b"[" * 100_000, "is not JSON: it is nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: .*digits")])
def test_what_is_no_json_object_is_one_clear_line(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=word) as caught:
        files.read_json(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_file(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "no", "is missing"), (tmp_path, "cannot be read")):
        with pytest.raises(ValueError, match=f"^{path} {word}"):
            files.read_json(path)
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}]}')
    assert files.read_json(tmp_path / "a.json") == {"a": [1, {"b": None}]}
