"""What runs and the scripts of ``figures/`` share: their options, how a folder is kept, how files are written."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import checkpoints, files
from ..environment import MEMORY, ONE_THREAD, environment, restart_with

try:
    import fcntl
except ImportError:                                     # not on Windows, where a folder has no lock
    fcntl = None                                        # type: ignore[assignment]

#: Is locked while a process writes into the folder, and holds its number; the file stays, the lock does not.
LOCK = ".lock"


def save(figure: Figure, numbers: Mapping[str, Any], path: Path, formats: Sequence[str] = ("png",),
         force: bool = False, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture, and beside it as JSON its numbers, its caption and the environment they were measured in.

    Parameters
    ----------
    figure : Figure
        With a caption, as `plotting.caption` writes it.
    numbers : mapping
        Plain data; NaN and infinity are written as null.
    path : Path
        Without a suffix; its folder is made if need be.
    formats : sequence of str
        ``png``, ``pdf``, ``svg``.
    force : bool
        Whether to replace files that an earlier call did not write.
    texts : mapping, optional
        Texts to write beside it, by suffix.

    Raises
    ------
    OverwriteError
        For a file that is there and that an earlier call did not write.
    OSError
        Names the file that cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = " ".join(figure.get_supxlabel().split())
    others = {path.with_suffix("." + suffix): drawn(figure, suffix) for suffix in formats}
    others |= {path.with_suffix("." + suffix): words.encode() for suffix, words in (texts or {}).items()}
    write(path.with_suffix(".json"), {"environment": environment(), "caption": text, **numbers}, others, force)


def drawn(figure: Figure, suffix: str = "png") -> bytes:
    """Return the bytes of a picture.

    Parameters
    ----------
    figure : Figure
        To draw.
    suffix : str
        ``png``, ``pdf`` or ``svg``.
    """
    with io.BytesIO() as file:
        figure.savefig(file, format=suffix)
        return file.getvalue()


def write(path: Path, numbers: Mapping[str, Any], others: Mapping[Path, bytes], force: bool = False) -> None:
    """Write numbers as JSON together with the files that belong to them; if one cannot be written, none is replaced.

    Under ``sha256`` the JSON lists itself (without that entry) and the other files. `refuse` recognizes by it what is
    as an earlier call wrote it.

    Parameters
    ----------
    path : Path
        The JSON file; its folder must exist.
    numbers : mapping
        Plain data, with an ``environment``; NaN and infinity are written as null.
    others : mapping from Path to bytes
        Files in the same folder.
    force : bool
        Whether to replace files that an earlier call did not write.

    Raises
    ------
    OverwriteError
        As from `refuse`.
    OSError
        Names the file that cannot be written.
    """
    refuse(path, others, force)
    content = plain(numbers)
    sums = {file.name: _digest(data) for file, data in others.items()} | {path.name: checkpoints.digest(content)}
    content["sha256"] = _earlier(path) | sums
    files.write_all({path: json.dumps(content, indent=1, allow_nan=False) + "\n", **others}, own=True, force=force)


def refuse(path: Path, others: Iterable[Path], force: bool = False) -> None:
    """Refuse to replace files that are not as an earlier call of `write` left them.

    Parameters
    ----------
    path : Path
        The JSON file.
    others : iterable of Path
        The files that belong to it.
    force : bool
        Whether to allow it nevertheless.

    Raises
    ------
    OverwriteError
        Names the file.
    """
    earlier = _earlier(path, others)
    files.refuse(path, path.name in earlier, force)
    for file in others:
        files.refuse(file, file.is_file() and earlier.get(file.name) == _digest(file.read_bytes()), force)


def _earlier(path: Path, others: Iterable[Path] = ()) -> dict[str, str]:
    """Return the SHA-256 of what was written with a JSON file, by name; nothing if it is not as it was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" not in content and "kfac_ref" in json.dumps(content["environment"]):    # of an earlier version
            return {file.name: _digest(file.read_bytes()) for file in (path, *others) if file.is_file()}
        sums: dict[str, str] = content.pop("sha256")
        return sums if sums[path.name] == checkpoints.digest(content) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder that can be written, before anything is computed.

    Parameters
    ----------
    folder : Path
        May be there already.

    Raises
    ------
    ValueError
        Where it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to this process; the system gives it free when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
        It must exist.

    Raises
    ------
    ValueError
        Where another process has it, or a file of that name is no lock.
    OSError
        Naming the file, where the lock cannot be written.
    """
    path = folder / LOCK
    with files.naming(path):
        if path.is_symlink() or (path.exists() and not re.fullmatch(rb"\d*\n?", path.read_bytes())):
            raise files.OverwriteError(f"{path} is no lock of a run, and is not replaced; choose another folder")
        file = path.open("ab+", buffering=0)
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip()
            raise ValueError(f"{folder} is in use by another run (process {holder})") from None
        except OSError:                                 # a file system that has no locks
            pass
        with files.naming(path):
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            if fcntl:                                   # closing alone leaves it to a child that another thread has
                with suppress(OSError):                 # forked and that has not yet become another program
                    fcntl.flock(file, fcntl.LOCK_UN)


def plain(value: Any) -> Any:
    """Return the same content in what JSON knows: arrays as lists, NaN and infinity as None.

    Parameters
    ----------
    value : Any
        Numbers, strings, arrays, and sequences and mappings of them.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def start(main: Callable[[Path, bool, Sequence[str], bool], int], doc: str | None, file: str) -> None:
    """Read a script's options, run its `main` with them and exit with what it returns.

    Parameters
    ----------
    main : function of (out, quick, formats, force)
        The script's.
    doc : str or None
        The script's docstring, which is its help.
    file : str
        The script's ``__file__``; what it writes goes to the folder of that name beside it, unless ``--out`` is given.
    """
    script = Path(file).resolve()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=script.with_suffix(""), metavar="DIR", help="where to write")
    parser.add_argument("--quick", action="store_true", help="small and fast: shows that everything works")
    parser.add_argument("--pdf", action="store_true", help="write the picture as PDF too")
    parser.add_argument("--force", action="store_true",
                        help="replace files that an earlier run of this script did not write; those that it wrote are "
                             "known by the hashes under sha256 in its JSON file, and replaced without this")
    arguments = parser.parse_args()
    restart_with(ONE_THREAD | MEMORY, [str(script), *sys.argv[1:]])
    formats = ("png", "pdf") if arguments.pdf else ("png",)
    to = arguments.out / script.stem
    try:
        refuse(to.with_suffix(".json"), [to.with_suffix("." + suffix) for suffix in formats], arguments.force)
        sys.exit(main(arguments.out, arguments.quick, formats, arguments.force))
    except (files.OverwriteError, OSError) as error:
        parser.exit(1, f"{script.name}: {error}\n")
