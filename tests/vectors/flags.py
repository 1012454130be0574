"""Write into each test vector the mistakes that it detects: ``python -m tests.vectors.flags``.

A flag is computed from values alone: a mistake of the catalogue is flagged where it changes one of the vector's
quantities by more than 1e-6 relatively. The diagnosis has no part in it. The numbers are left as they are.
"""

from __future__ import annotations

from kfac_ref.oracle import CATALOGUE, Problem, Reference
from kfac_ref.oracle.differences import differ

from . import make


def flags(problem: Problem, quantities: list[str]) -> list[str]:
    right = Reference(problem)
    values = {name: right[name] for name in quantities}

    def wrong(mistake, name):
        try:
            return right.having(mistake).shown(name)
        except ValueError:
            return None                                     # it stops with an error: nobody gets a number from it
    return [mistake.name for mistake in CATALOGUE.values()
            if any(differ(value, wrong(mistake, name)) for name, value in values.items())]


def main() -> None:
    for path in sorted(make.FOLDER.glob("*.json")):
        contents = make.read(path)
        found = flags(Problem.read(path), list(contents["expected"]))
        make.save({**contents, "flags": found}, path)
        print(f"{path.stem:30} {len(found):4} of {len(CATALOGUE)} mistakes")
    make.write_sums(make.FOLDER)


if __name__ == "__main__":
    main()
