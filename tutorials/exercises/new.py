"""Write a blank file of answers: ``python new.py FILE``. An existing file is not replaced."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import source


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file that is named, and return the exit status."""
    parser = argparse.ArgumentParser(prog="new.py", description="Write a blank file of answers to the exercises.")
    parser.add_argument("file", type=Path, help="the file to write, such as answers.py")
    path = parser.parse_args(argv).file
    check = os.path.relpath(source.HERE / "check.py")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(source.blank_file(path.as_posix(), Path(check).as_posix()))
    except FileExistsError:
        print(f"new.py: {path} exists and is not replaced; choose another name", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"new.py: {path}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"wrote {path}: {len(source.read())} exercises. Grade it with: python {check} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
