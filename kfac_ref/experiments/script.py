"""What runs and the scripts of ``figures/`` share: their options, how a folder is kept, how files are written."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..environment import MEMORY, ONE_THREAD, environment, restart_with

try:
    import fcntl
except ImportError:                                     # not on Windows, where a folder has no lock
    fcntl = None                                        # type: ignore[assignment]

#: Is locked while a process writes into the folder, and holds its number; the file stays, the lock does not.
LOCK = ".lock"


def save(figure: Figure, numbers: Mapping[str, Any], path: Path, formats: Sequence[str] = ("png",)) -> None:
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

    Raises
    ------
    OSError
        Where the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        figure.savefig(path.with_suffix("." + suffix))
    text = " ".join(figure.get_supxlabel().split())
    content = plain({"environment": environment(), "caption": text, **numbers})
    path.with_suffix(".json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is never half there.

    Parameters
    ----------
    path : Path
        The file; what it held before stays until all of the new text is on the disk.
    text : str
        What it holds.

    Raises
    ------
    OSError
        Naming the file, where it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path} ({error.strerror})") from error


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
        probe = folder / ".kfac_ref_probe"
        probe.touch()
        probe.unlink()
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
        Where another process has it.
    OSError
        Naming the file, where the lock cannot be written.
    """
    path = folder / LOCK
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path} ({error.strerror})") from error
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
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path} ({error.strerror})") from error
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


def start(main: Callable[[Path, bool, Sequence[str]], int], doc: str | None, file: str) -> None:
    """Read a script's options, run its `main` with them and exit with what it returns.

    Parameters
    ----------
    main : function of (out, quick, formats)
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
    arguments = parser.parse_args()
    restart_with(ONE_THREAD | MEMORY, [str(script), *sys.argv[1:]])
    sys.exit(main(arguments.out, arguments.quick, ("png", "pdf") if arguments.pdf else ("png",)))
