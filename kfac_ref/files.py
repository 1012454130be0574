"""Writing files: whole or not at all, and never over a file of somebody else.

A file is written beside its place, forced to the disk and then renamed, so that at any moment its place holds either
all of the old content or all of the new. A symbolic link is never written through.
"""

from __future__ import annotations

import filecmp
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

#: What a file is to hold: text (UTF-8), bytes, or a function that writes it to an open binary file.
Content: TypeAlias = str | bytes | Callable[[BinaryIO], Any]
_NUMBERS = itertools.count()


class OverwriteError(ValueError):
    """Raised by `refuse` and `write` instead of replacing a file; the message names the file."""


def refuse(path: Path, own: bool = False, force: bool = False) -> None:
    """Raise an error if `path` holds something that must not be replaced.

    Parameters
    ----------
    path : Path
        Where a file is to be written.
    own : bool
        Whether the caller knows that it wrote the present file itself.
    force : bool
        Whether the user allows to replace any file. A link is then replaced itself, never its target.

    Raises
    ------
    OverwriteError
        For a file that is not the caller's, a symbolic link, a folder or a device.
    """
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise OverwriteError(f"{path} is there already and is no regular file")
    if force:
        return
    if path.is_symlink():
        raise OverwriteError(f"{path} is a symbolic link to {path.readlink()}, which is not followed; --force replaces "
                             "the link")
    if not own:
        raise OverwriteError(f"{path} is there already and is not replaced; choose another place, or give --force")


def write(path: Path, content: Content, own: bool = False, force: bool = False) -> None:
    """Write one file, as `write_all` does.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    content : str, bytes or function of a binary file
        What it is to hold.
    own, force : bool
        As in `refuse`.
    """
    write_all({path: content}, own, force)


def write_all(contents: Mapping[Path, Content], own: bool = False, force: bool = False) -> None:
    """Write several files; if one cannot be written or is refused, none is replaced.

    Parameters
    ----------
    contents : mapping from Path to str, bytes or function of a binary file
        What each file is to hold; their folders must exist.
    own, force : bool
        As in `refuse`. A file that holds the same bytes already is never refused.

    Raises
    ------
    OverwriteError
        As from `refuse`.
    OSError
        Names the file that cannot be written.
    """
    with ExitStack() as stack:
        parts = {path: stack.enter_context(staged(path, content)) for path, content in contents.items()}
        for path, part in parts.items():
            same = path.is_file() and not path.is_symlink() and filecmp.cmp(part, path, shallow=False)
            refuse(path, own or same, force)
        for path, part in parts.items():
            with naming(path):
                part.replace(path)
                sync(path.parent)


@contextmanager
def staged(path: Path, content: Content) -> Iterator[Path]:
    """Write the content for `path` to a temporary file beside it; the caller renames it.

    Parameters
    ----------
    path : Path
        Where the file will be.
    content : str, bytes or function of a binary file
        What it is to hold.

    Yields
    ------
    Path
        The temporary file, which is on the disk; it is removed if it is still there in the end.

    Raises
    ------
    OSError
        Names `path`.
    """
    part = path.with_name(f".kfac_ref-{os.getpid()}-{next(_NUMBERS)}.part")
    try:
        with naming(path):
            part.unlink(missing_ok=True)                # left by a killed process that had the same number
            with part.open("xb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name the file.

    Parameters
    ----------
    path : Path
        What is written inside.

    Raises
    ------
    OSError
        With a message such as ``cannot write PATH (No space left on device)``.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error})") from error


def sync(folder: Path) -> None:
    """Force renames to the disk; only POSIX allows to open a folder for that.

    Parameters
    ----------
    folder : Path
        In which files were renamed.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
