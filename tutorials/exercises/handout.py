"""Pack the exercises for students, without solutions: ``python handout.py FILE.zip``."""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parent))
import source

from kfac_ref import files

FOLDER = "kfac-exercises"
COPIED = ("README.md", "asked.py", "check.py", "child.py", "grading.py", "new.py", "runner.py", "source.py")


def contents() -> dict[str, str]:
    """Return the text of each file in the zip, by name."""
    texts = {name: (source.HERE / name).read_text(encoding="utf-8") for name in COPIED}
    texts["LICENSE"] = (source.HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
    texts["exercises.py"] = source.without_solutions()
    texts["answers.py"] = source.blank_file("answers.py")
    return dict(sorted(texts.items()))


def pack(file: BinaryIO) -> None:
    """Write the zip to an open file. The same contents give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in contents().items():
            entry = zipfile.ZipInfo(f"{FOLDER}/{name}")             # its date is always 1980
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, text, zipfile.ZIP_DEFLATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the zip that is named, and return the exit status."""
    parser = argparse.ArgumentParser(prog="handout.py", description="Pack the exercises without their solutions.")
    parser.add_argument("file", type=Path, help="the zip to write")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    args = parser.parse_args(argv)
    try:
        files.write(args.file, pack, force=args.force)
    except (OSError, files.OverwriteError) as error:
        print(f"handout.py: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.file}: {len(contents())} files, {len(source.read())} exercises, no solutions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
