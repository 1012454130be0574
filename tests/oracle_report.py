"""What the diagnosis finds: ``python -m tests.oracle_report [--part K/N]`` (``make oracle-report``).

The wrong values are composed by `tests.composed`, not by the oracle: each mistake of the catalogue on each published
vector that it changes, each wrong number, each ordered pair of a replacement and a wrapper, and other pairs at random.
Then the diagnosis gets all quantities of the vector. What it reports is one of these:

* exactly: only what was done;
* among equals: what was done, or another cause with the same values, beside others with the same values;
* masked (pairs): one of the two alone, which has the same values as both;
* missed: nothing, although the values are wrong;
* wrong: something that has other values, composed by the same code.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kfac_ref.oracle import CATALOGUE, Mistake, Reference, Vector, published, vector
from kfac_ref.oracle.differences import VISIBLE, differ
from kfac_ref.oracle.mistakes.numbers import FAMILIES
from kfac_ref.oracle.search import Diagnosis
from tests import composed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "oracle_report.md"
#: Pairs of any kind, drawn at random.
PAIRS = 2000
OUTCOMES = ("exactly", "among equals", "masked", "missed", "wrong")
KINDS = ("single", "number", "pair", "replacement and wrapper")
#: Values as close as this are the same: the vectors have singular factors, and float32 inputs.
SAME = 1e-6

#: What was done: the names of mistakes, or the name of a family of numbers and the number.
Done = tuple[Any, ...]
Case = tuple[str, str, Done]        # kind, vector, what was done


@cache
def flags() -> dict[str, set[str]]:
    """Return the flags of the vectors without a trajectory."""
    return {name: set(vector(name).flags) for name in published.names() if not name.startswith("trajectory")}


@cache
def known(name: str) -> tuple[Vector, Reference, dict[str, Any]]:
    """Return a vector, the oracle's values of it, and ours."""
    v = vector(name)
    return v, Reference(v.problem), composed.values(v.problem, (), v.expected)


def mistakes_of(done: Done) -> tuple[Mistake, ...]:
    if done[0] in CATALOGUE:
        return tuple(CATALOGUE[name] for name in done)
    return (next(f for f in FAMILIES if f.name == done[0]).at(done[1]),)


def visible(right: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return any(differ(right[name], value) for name, value in theirs.items() if name in right)


@cache
def shows(name: str, mistake: Mistake) -> bool:
    """Return whether a mistake changes some quantity of a vector."""
    v, _, right = known(name)
    return visible(right, composed.values(v.problem, (mistake,), v.expected))


def cases(name: str) -> list[Case]:
    """Return the single mistakes and numbers of a vector."""
    r = known(name)[1]
    rng = np.random.default_rng(sum(map(ord, name)))
    found: list[Case] = [("single", name, (m,)) for m in CATALOGUE]
    for family in FAMILIES:
        if not family.per_layer and family.defined(r):
            c = float(f"{10**rng.uniform(-1.5, 1.5):.3g}")
            found.append(("number", name, (family.name, c)))
    return found


def pairs(count: int, seed: int = 0) -> list[Case]:
    """Draw pairs of mistakes, in a random order, with a vector that flags one of them."""
    rng, found = random.Random(seed), list[Case]()
    while len(found) < count:
        name, pair = rng.choice(list(flags())), tuple(rng.sample(list(CATALOGUE), 2))
        if flags()[name] & set(pair):
            found.append(("pair", name, pair))
    return found


def replacements_with_wrappers(seed: int = 0) -> list[Case]:
    """Return each ordered pair of a replacement and a wrapper, with a vector drawn from those that may show both."""
    rng, found = random.Random(seed), list[Case]()
    problem = vector("categorical-tanh").problem
    wraps = {name: composed.is_wrapper(m, problem) for name, m in CATALOGUE.items()}
    flagged = set().union(*flags().values())
    for a, b in itertools.permutations(CATALOGUE, 2):
        if wraps[a] != wraps[b]:                            # the flags do not know later mistakes
            some = [name for name in flags() if flagged & {a, b} <= flags()[name]]
            found.append(("replacement and wrapper", rng.choice(some or list(flags())), (a, b)))
    return found


def outcome(case: Case) -> tuple[Case, str, tuple[tuple[str, ...], ...]]:
    """Return what the diagnosis makes of a case: one of `OUTCOMES`, or "unseen" where the values stay right."""
    kind, name, done = case
    v, r, right = known(name)
    mistakes = mistakes_of(done)
    theirs = composed.values(v.problem, mistakes, v.expected)
    if not visible(right, theirs) or not all(shows(name, m) for m in mistakes):
        return case, "unseen", ()
    d = Diagnosis(r, theirs, v.problem.dtype)
    if kind == "replacement and wrapper":                   # so many that only the composition is compared
        return case, "among equals" if d.fits(mistakes) else "missed", ()
    found = [*d.explanations(), *d.by_chance]
    names = tuple(e.names for e in found)
    if not found:
        return case, "missed", ()
    stem = done[0].partition("{c}")[0]                     # numbers are reported in the simplest words
    others = [e for e in found if set(e.names) != {m.name for m in mistakes}
              and not (kind == "number" and len(e.names) == 1 and e.names[0].startswith(stem))]
    for e in others:
        if not composed.same(composed.values(v.problem, e.mistakes, theirs), theirs, SAME):
            return case, "wrong", names
    if not others:
        return case, "exactly", names
    masks = [e for e in others if {m.name for m in e.mistakes} < {m.name for m in mistakes}]
    return case, "masked" if masks else "among equals", names


def every() -> list[Case]:
    found = [case for name in published.names() for case in cases(name)]
    return [*found, *pairs(PAIRS), *replacements_with_wrappers()]


def part_of_them(k: int, n: int) -> list[Case]:
    """Return part k of n of all cases, drawn at random, by vector (whose values are kept)."""
    found = every()
    random.Random(1).shuffle(found)
    return sorted(found[k - 1::n], key=lambda case: case[1])


def judged(chosen: list[Case]) -> list[Any]:
    warnings.simplefilter("ignore")
    return [outcome(case) for case in chosen]


def table(counts: Counter[tuple[str, str]]) -> list[str]:
    """Return the lines of the table of outcomes by kind."""
    lines = [f"| | cases | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for kind in KINDS:
        row = [counts[kind, o] for o in OUTCOMES]
        lines.append(f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the diagnosis finds.")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only part K of N of the cases, drawn at random; "
                        "the page is not written")
    k, n = map(int, parser.parse_args().part.split("/"))
    start, chosen = time.perf_counter(), part_of_them(k, n)
    counts: Counter[tuple[str, str]] = Counter()
    beside: dict[str, Counter[str]] = {name: Counter() for name in CATALOGUE}
    bad = []
    with ProcessPoolExecutor(2) as pool:
        for part in pool.map(judged, [chosen[i:i + 50] for i in range(0, len(chosen), 50)]):
            for (kind, name, done), what, names in part:
                counts[kind, what] += 1
                if kind == "single" and what != "unseen":
                    beside[done[0]]["vectors"] += 1
                    beside[done[0]].update({other for e in names for other in e if other != done[0]})
                if what in ("missed", "wrong"):
                    bad.append(f"{what}: {' with '.join(map(str, done))} in {name}"
                               f"{': ' + '; '.join(' with '.join(e) for e in names) if names else ''}")
            print(f"\r{sum(counts.values())} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    unseen = sum(count for (_, what), count in counts.items() if what == "unseen")
    lines = [*table(counts), "", f"In {unseen} other cases a mistake changes nothing there, or two cancel.",
             *(["", *(f"- {text}" for text in bad)] if bad else [])]
    print("\n" + "\n".join(lines) + f"\n{time.perf_counter() - start:.0f} s")
    if n == 1:
        write(lines, beside)
    return int(bool(bad))


def write(lines: list[str], beside: dict[str, Counter[str]]) -> None:
    """Write the page."""
    doc = (__doc__ or "").split("\n\n", 1)[1].replace("`tests.composed`", "code of the test suite")
    rows = [f"| {name} | {CATALOGUE[name].group} | {found['vectors']} | "
            f"{'; '.join(sorted(set(found) - {'vectors'})) or '-'} |" for name, found in beside.items()]
    PAGE.write_text("\n".join([
        "# What the diagnosis finds", "", f"The catalogue has {len(CATALOGUE)} mistakes. `make oracle-report` writes "
        f"this page. Two values are the same if they differ by less than {SAME:g} of the largest entry; a "
        f"mistake shows if it changes a quantity by more than {VISIBLE:g} of it.", "", doc.strip(), "",
        "Of a replacement with a wrapper, only the composition is compared: whether the oracle's values of the pair "
        "are those that the test composed.", "", *lines, "", "## By mistake", "",
        "| mistake | group | vectors that show it | reported beside it in some |", "|---|---|---|---|", *rows]) + "\n",
        encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
