"""The figures of the README: convergence on the digits autoencoder, the Fisher of the digits classifier, its budget.

    python figures/demo.py [--quick] [--pdf] [--out DIR]

The same as ``kfac-ref demo``, written beside this script: ``convergence.png``, ``fisher.png``, ``budget.png`` and, with
every number in them, ``summary.json``. The first is like the paper's figures 10 and 11 (error against seconds and
iterations), the second like its figure 2 (|F|, |F~|, |F - F~|); the paper has none like the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kfac_ref import cli
from kfac_ref.experiments import script

HERE = Path(__file__).parent / "demo"


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run the demo and write its figures to `out`; returns 0 if all was written."""
    return cli.main(["demo", "--out", str(out), *(["--quick"] if quick else []),
                     *(["--pdf"] if "pdf" in formats else []), *(["--force"] if force else [])])


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
