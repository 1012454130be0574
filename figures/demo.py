"""The figures of the README: convergence on the digits autoencoder, the Fisher of the digits classifier, its budget.

    python figures/demo.py [--quick] [--out DIR]

The same as ``kfac-ref demo``, written beside this script: ``convergence.png``, ``fisher.png``, ``budget.png`` and, with
every number in them, ``summary.json``. The first is like the paper's figures 10 and 11 (error against seconds and
iterations), the second like its figure 2 (|F|, |F~|, |F - F~|); the paper has none like the third.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kfac_ref import cli

HERE = Path(__file__).parent / "demo"


def main(out: Path = HERE, quick: bool = False) -> int:
    """Run the demo and write its figures to `out`; returns 0 if all was written."""
    return cli.main(["demo", "--out", str(out), *(["--quick"] if quick else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    cli.restart_with(cli.ONE_THREAD | cli.MEMORY, [str(Path(__file__).resolve()), *sys.argv[1:]])
    sys.exit(main(arguments.out, arguments.quick))
