"""What runs and the scripts of ``figures/`` share: their options, how a folder is locked, how results are written."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import checkpoints, files
from ..environment import environment, one_thread

try:
    import fcntl
except ImportError:                                     # not on Windows, where a folder has no lock
    fcntl = None                                        # type: ignore[assignment]

#: Is locked while a process writes into the folder; the file stays, the lock does not.
LOCK = ".lock"


def save(figure: Figure, numbers: Mapping[str, Any], path: Path, formats: Sequence[str] = ("png",),
         force: bool = False, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture, and beside it as JSON its numbers, its caption and the environment they were measured in.

    Parameters
    ----------
    figure : Figure
        With a caption, as `plotting.caption` writes it.
    numbers : mapping
        Plain data.
    path : Path
        Without a suffix; its folder is made if needed.
    formats : sequence of str
        ``png``, ``pdf``, ``svg``.
    force : bool
        Whether to replace files that an earlier call did not write.
    texts : mapping, optional
        Texts to write beside it, by suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = " ".join(figure.get_supxlabel().split())
    others = {path.with_suffix("." + suffix): drawn(figure, suffix) for suffix in formats}
    others |= {path.with_suffix("." + suffix): words.encode() for suffix, words in (texts or {}).items()}
    write(path.with_suffix(".json"), {"environment": environment(), "caption": text, **numbers}, others, force)


def drawn(figure: Figure, suffix: str = "png") -> bytes:
    """Return the bytes of a picture, as ``png``, ``pdf`` or ``svg``."""
    with io.BytesIO() as file:
        figure.savefig(file, format=suffix)
        return file.getvalue()


def write(path: Path, numbers: Mapping[str, Any], others: Mapping[Path, bytes], force: bool = False) -> None:
    """Write numbers as JSON together with the files that belong to them; if one cannot be written, none is replaced.

    Under ``sha256`` the JSON lists itself (without that entry) and the other files, which are in the same folder. By
    these, `refuse` recognizes files that an earlier call wrote. NaN and infinity are written as null.
    """
    refuse(path, others, force)
    content = plain(numbers)
    sums = {file.name: _digest(data) for file, data in others.items()} | {path.name: checkpoints.digest(content)}
    content["sha256"] = _earlier(path) | sums
    files.write_all({path: json.dumps(content, indent=1, allow_nan=False) + "\n", **others}, own=True, force=force)


def refuse(path: Path, others: Iterable[Path], force: bool = False) -> None:
    """Refuse to replace a JSON file, or others that belong to it, unless they are as an earlier `write` left them."""
    earlier = _earlier(path)
    files.refuse(path, path.name in earlier, force)
    for file in others:
        files.refuse(file, file.is_file() and earlier.get(file.name) == _digest(file.read_bytes()), force)


def _earlier(path: Path) -> dict[str, str]:
    """Return the SHA-256 of what was written with a JSON file, by name; nothing if it is not as it was written."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        content = files.read_json(path)
        sums: dict[str, str] = content.pop("sha256")
        if sums[path.name] == checkpoints.digest(content):
            return sums
    return {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder, before anything is computed; raise a ValueError if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an existing folder for this process; the system releases the lock when the process ends, however it ends.

    Raises a ValueError if another process has the folder. Windows and some file systems have no locks.
    """
    path = folder / LOCK
    if path.is_symlink():
        raise files.OverwriteError(f"{path} is a symbolic link, which is not followed")
    with files.naming(path):
        file = path.open("ab")                          # nothing is written to it
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another process") from None
        except OSError:                                 # a file system that has no locks
            pass
        try:
            yield
        finally:
            if fcntl:                                   # closing alone leaves it to a child that another thread has
                with suppress(OSError):                 # forked and that has not yet become another program
                    fcntl.flock(file, fcntl.LOCK_UN)


def plain(value: Any) -> Any:
    """Return the same content in what JSON knows: arrays as lists, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def start(main: Callable[[Path, bool, Sequence[str], bool], int], doc: str | None, file: str) -> None:
    """Read a script's options, run its ``main(out, quick, formats, force)`` and exit with what it returns.

    `doc` is the script's docstring, which is its help; `file` its ``__file__``: unless ``--out`` is given, it writes to
    the folder of that name beside it.
    """
    script = Path(file).resolve()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=script.with_suffix(""), metavar="DIR", help="where to write")
    parser.add_argument("--quick", action="store_true", help="small and fast: shows that everything works")
    parser.add_argument("--pdf", action="store_true", help="write the picture as PDF too")
    parser.add_argument("--force", action="store_true",
                        help="replace files that an earlier run of this script did not write; those that it wrote are "
                             "recognized by the hashes under sha256 in its JSON file, and replaced without this")
    arguments = parser.parse_args()
    formats = ("png", "pdf") if arguments.pdf else ("png",)
    to = arguments.out / script.stem
    try:
        refuse(to.with_suffix(".json"), [to.with_suffix("." + suffix) for suffix in formats], arguments.force)
        with one_thread():
            sys.exit(main(arguments.out, arguments.quick, formats, arguments.force))
    except (files.OverwriteError, OSError) as error:
        parser.exit(1, f"{script.name}: {error}\n")
