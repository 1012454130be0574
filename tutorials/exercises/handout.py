"""Pack the edition for students: ``python handout.py FILE.zip``. There is no solution in it."""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import source

FOLDER = "kfac-exercises"
AS_THEY_ARE = ("README.md", "asked.py", "check.py", "child.py", "grading.py", "new.py", "runner.py", "source.py")


def contents() -> dict[str, str]:
    """Return the text of each file of the edition, by name."""
    files = {name: (source.HERE / name).read_text(encoding="utf-8") for name in AS_THEY_ARE}
    files["LICENSE"] = (source.HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
    files["exercises.py"] = source.without_solutions()
    files["answers.py"] = source.blank_file("answers.py")
    return dict(sorted(files.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the zip that is named, and return the exit status."""
    parser = argparse.ArgumentParser(prog="handout.py", description="Pack the exercises without their solutions.")
    parser.add_argument("file", type=Path, help="the zip to write; one that is there is replaced")
    path = parser.parse_args(argv).file
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, text in contents().items():
                entry = zipfile.ZipInfo(f"{FOLDER}/{name}")         # of no date: one source, the same bytes
                entry.external_attr = 0o644 << 16
                packed.writestr(entry, text, zipfile.ZIP_DEFLATED)
    except OSError as error:
        print(f"handout.py: {path}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"wrote {path}: {len(contents())} files, {len(source.read())} exercises, no solutions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
