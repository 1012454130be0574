"""Files: written whole or not at all, never over somebody else's, and JSON that is read with one clear error.

A file is written beside its place, forced to the disk and then renamed, so that at any moment its place holds either
all of the old content or all of the new. A symbolic link is never written through. Every OSError names the file.
"""

from __future__ import annotations

import filecmp
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

#: The content of a file: text (UTF-8), bytes, or a function that writes it to an open binary file.
Content: TypeAlias = str | bytes | Callable[[BinaryIO], Any]
_NUMBERS = itertools.count()


class OverwriteError(ValueError):
    """Raised by `refuse` and `write` instead of replacing a file; the message names the file."""


def refuse(path: Path, own: bool = False, force: bool = False) -> None:
    """Raise an OverwriteError if `path` holds something that must not be replaced.

    Parameters
    ----------
    path : Path
        Where a file is to be written.
    own : bool
        Whether the caller knows that it wrote the present file itself.
    force : bool
        Whether the user allows to replace any file. A link is then replaced itself, never its target.
    """
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise OverwriteError(f"{path} exists and is not a regular file")
    if force:
        return
    if path.is_symlink():
        raise OverwriteError(f"{path} is a symbolic link to {path.readlink()}, which is not followed; --force replaces "
                             "the link")
    if not own:
        raise OverwriteError(f"{path} exists and is not replaced; choose another place, or give --force")


def write(path: Path, content: Content, own: bool = False, force: bool = False) -> None:
    """Write one file, as `write_all` does."""
    write_all({path: content}, own, force)


def write_all(contents: Mapping[Path, Content], own: bool = False, force: bool = False) -> None:
    """Write several files; if one cannot be written or is refused, none is replaced.

    `own` and `force` are those of `refuse`; a file that holds the same bytes already is never refused.
    """
    with ExitStack() as stack:
        parts = {path: stack.enter_context(_staged(path, content)) for path, content in contents.items()}
        for path, part in parts.items():
            same = path.is_file() and not path.is_symlink() and filecmp.cmp(part, path, shallow=False)
            refuse(path, own or same, force)
        for path, part in parts.items():
            with naming(path):
                part.replace(path)
                _sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say ``cannot write PATH (No space left on device)``."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; raise a ValueError that names the file if it does not."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return parse_json(text, str(path))


def parse_json(text: str, name: str) -> dict[str, Any]:
    """Return the JSON object in a text; a ValueError calls the text by its name.

    A name that an object holds twice is refused, as are NaN, infinity and objects that are nested too deeply.
    """
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object whose names differ."""
        names = [key for key, _ in pairs]
        if twice := sorted({key for key in names if names.count(key) > 1}):
            raise ValueError(f"{twice[0]!r} is given twice")
        return dict(pairs)

    def finite(word: str) -> float:
        """Refuse NaN and infinity, which are not JSON."""
        raise ValueError(f"{word} is not a JSON value")

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=finite)
    except RecursionError:
        raise ValueError(f"{name} is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold an object, got {type(content).__name__}")
    return content


@contextmanager
def _staged(path: Path, content: Content) -> Iterator[Path]:
    """Write the content for `path` to a temporary file beside it, which is removed unless the caller renames it."""
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


def _sync(folder: Path) -> None:
    """Force renames to the disk; only POSIX allows to open a folder for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
