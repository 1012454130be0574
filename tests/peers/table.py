"""Print how far each installed peer is from us, through its dialect.

    python -m tests.peers.table

One line for each library and quantity: the largest relative difference over all problems that it can be run on, and a
verdict. Deviations that are known have lines of their own. The exit status is 1 if something differs that is not known.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections import defaultdict
from importlib.metadata import version
from typing import Any

from tests.peers import cases

#: What is imported: its package, and the file here that runs it.
PEERS = {"curvlinops": ("curvlinops-for-pytorch", "test_curvlinops"),
         "backpack": ("backpack-for-pytorch", "test_backpack"),
         "nngeometry": ("nngeometry", "test_nngeometry"), "asdl": ("asdfghjkl", "test_asdl"),
         "kfac_jax": ("kfac-jax", "test_kfac_jax")}


def lines(peer: Any, package: str) -> list[tuple[str, str, str, str, str]]:
    """Return the lines of one library."""
    worst: dict[tuple[str, str, str], float] = defaultdict(float)
    runs: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for dialect in peer.DIALECTS_HERE:
        for case in cases.those(peer.supports):
            found = cases.verdicts(dialect, peer.quantities(case, dialect), case, peer.known)
            for quantity, (d, verdict) in found.items():
                key = (dialect, quantity, verdict)
                worst[key] = max(worst[key], d)
                runs[key].append(case.name)
    return [(dialect, version(package), quantity, f"{worst[key]:.1e}",
             f"{verdict} ({len(runs[key])} problems)" if verdict == "agrees" else f"{verdict} ({', '.join(runs[key])})")
            for key in worst for dialect, quantity, verdict in [key]]


def main() -> int:
    """Print the table."""
    rows = [("library", "version", "quantity", "difference", "verdict")]
    warnings.simplefilter("ignore")                         # the peers' own deprecations
    for module, (package, file) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            rows.append((package, "-", "-", "-", "not installed"))
        else:
            rows += lines(importlib.import_module(f"tests.peers.{file}"), package)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(any("DIFFERS" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
