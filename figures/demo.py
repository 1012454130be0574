"""The demo's figures: convergence on the digits autoencoder, the digits classifier's Fisher, and its error budget.

    python figures/demo.py [--quick] [--pdf] [--out DIR]

The same as ``kfac-ref demo``, written to the folder of the figures: ``convergence.png``, ``fisher.png``, ``budget.png``
and ``summary.json`` with every number in them. The first resembles the paper's figures 10 and 11 (error against seconds
and iterations), the second its figure 2 (|F|, |F̃|, |F - F̃|); the third has no counterpart in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kfac_ref import cli
from kfac_ref.experiments import script

HERE = Path(__file__).parent / "demo"


def main(out: Path = HERE, quick: bool = False, formats: Sequence[str] = ("png",), force: bool = False) -> int:
    """Run the demo and write its figures to `out`; return 0 if all were written."""
    return cli.main(["demo", "--out", str(out), *(["--quick"] if quick else []),
                     *(["--pdf"] if "pdf" in formats else []), *(["--force"] if force else [])])


if __name__ == "__main__":
    script.start(main, __doc__, __file__)
