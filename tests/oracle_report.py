"""What the diagnosis finds: every mistake of the catalogue, put into every vector that flags it, alone and in pairs.

``python -m tests.oracle_report`` writes docs/oracle_report.md (``make oracle-report``). A mistake counts as found where
it is among the explanations that fit the vector's quantities; those reported beside it are what these numbers cannot
tell from it.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfac_ref.oracle import CATALOGUE, Mistake, Reference, Vector, published, vector
from kfac_ref.oracle.differences import differ
from kfac_ref.oracle.search import Diagnosis

PAGE = Path(__file__).resolve().parents[1] / "docs" / "oracle_report.md"
PAIRS = 200


def quantities(reference: Reference, mistakes: tuple[Mistake, ...], names: Any) -> dict[str, Any]:
    """Return what a program with these mistakes would give, as far as it gives anything."""
    r = reference.having(*mistakes)
    found = {}
    for name in names:
        try:
            found[name] = r.shown(name)
        except ValueError:
            continue
    return found


def visible(reference: Reference, theirs: dict[str, Any]) -> bool:
    return any(differ(reference[name], value) for name, value in theirs.items())


def singles(v: Vector, reference: Reference) -> Iterator[tuple[str, list[str]]]:
    """Yield each flagged mistake with the single mistakes that are reported for it."""
    for name in v.flags:
        theirs = quantities(reference, (CATALOGUE[name],), v.expected)
        diagnosis = Diagnosis(reference, theirs)
        yield name, [m.name for m in CATALOGUE.values() if diagnosis.fits((m,))]


def pairs(count: int, seed: int = 0) -> Iterator[tuple[str, tuple[Mistake, Mistake]]]:
    """Draw pairs of mistakes with a vector that flags both."""
    rng = random.Random(seed)
    flags = {name: vector(name).flags for name in published.names()}
    every = list(itertools.combinations(CATALOGUE.values(), 2))
    while count:
        name, pair = rng.choice(published.names()), rng.choice(every)
        if all(m.name in flags[name] for m in pair):
            yield name, pair
            count -= 1


def found(pair: tuple[Mistake, Mistake], explanations: Any) -> bool:
    """Return whether a pair, or the one of it that is left to see, is among the explanations."""
    names = {m.name for m in pair}
    return any(set(e.names) <= names for e in explanations)


def main() -> int:
    start = time.perf_counter()
    beside: dict[str, set[str]] = {name: set() for name in CATALOGUE}
    alone: dict[str, int] = dict.fromkeys(CATALOGUE, 0)
    flagged: dict[str, int] = dict.fromkeys(CATALOGUE, 0)
    missed = []
    references = {}
    for name in published.names():
        v = vector(name)
        reference = references[name] = Reference(v.problem)
        for mistake, reported in singles(v, reference):
            flagged[mistake] += 1
            alone[mistake] += reported == [mistake]
            beside[mistake] |= {other for other in reported if other != mistake}
            if mistake not in reported:
                missed.append(f"{mistake} in {name}")
        print(f"{name} ({time.perf_counter() - start:.0f} s)", flush=True)
    tried = lost = unseen = 0
    for name, pair in pairs(PAIRS):
        theirs = quantities(references[name], pair, vector(name).expected)
        if not visible(references[name], theirs):
            unseen += 1
            continue
        tried += 1
        if not found(pair, Diagnosis(references[name], theirs).explanations()):
            lost += 1
            missed.append(f"{pair[0].name} with {pair[1].name} in {name}")
    seconds = time.perf_counter() - start
    cases = sum(flagged.values())
    lines = [
        "# What the diagnosis finds", "",
        "Each mistake of the catalogue was put into each published test vector that flags it (flags come from the "
        "values alone), and the diagnosis was given all quantities of the vector. `make oracle-report` writes this "
        "page.", "",
        f"- {len(CATALOGUE)} mistakes, {len(references)} vectors, {cases} cases: the mistake is among the explanations "
        f"in {cases - sum(' with ' not in m for m in missed)}, and the only single one in {sum(alone.values())}.",
        f"- {PAIRS} pairs drawn at random: {unseen} cancel or stop with an error; of the {tried} others, "
        f"{tried - lost} are found.",
        *([f"- missed: {'; '.join(missed)}"] if missed else []), "",
        "| mistake | group | vectors that flag it | alone in | reported beside it in some |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {m.group} | {flagged[name]} | {alone[name]} | {'; '.join(sorted(beside[name])) or '-'} |"
              for name, m in CATALOGUE.items()]
    never = [name for name in CATALOGUE if flagged[name] and not alone[name]]
    lines += ["", "## Never told apart", "",
              "By the quantities of no vector is one of these alone: " + ("; ".join(never) if never else "none") + "."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[4:8]))
    print(f"wrote {PAGE} in {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
