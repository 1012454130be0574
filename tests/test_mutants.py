"""The tests have power: every mistake that is put into the package is noticed, and what changes nothing is not.

Here each mutant meets the tests that it names; ``make mutants`` runs all of them on all and prints the matrix.
"""

from __future__ import annotations

import pytest

from tests import mutants


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants.MUTANTS[::13], ids=lambda m: m.name)      # make mutants runs all
def test_a_mutant_is_killed_and_a_no_op_survives(mutant: mutants.Mutant) -> None:
    assert (mutants.failures(mutant) == 0) == mutant.survives


def test_there_are_mutants_enough() -> None:
    assert sum(not m.survives for m in mutants.MUTANTS) >= 20
    assert sum(m.survives for m in mutants.MUTANTS) >= 3
    assert len({m.name for m in mutants.MUTANTS}) == len(mutants.MUTANTS)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_the_line_of_a_mutant_is_there(mutant: mutants.Mutant) -> None:
    assert (mutants.ROOT / "kfac_ref" / mutant.file).read_text().count(mutant.right) == 1


def test_a_mutant_whose_line_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"stands 0 times in params\.py"):
        mutants.failures(mutants.Mutant("gone", "params", "params.py", "no such line", ""))
