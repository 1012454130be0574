"""The tests have power: every mistake that is put into the package is noticed, and what changes nothing is not."""

from __future__ import annotations

import pytest

from tests import mutants


@pytest.fixture(scope="module")
def kills() -> dict[mutants.Mutant, int]:
    found = mutants.matrix()
    print("\n" + mutants.report(found))
    return {mutant: failed.total() for mutant, failed in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_killed_and_a_no_op_survives(kills: dict[mutants.Mutant, int], mutant: mutants.Mutant) -> None:
    assert (kills[mutant] == 0) == mutant.survives


def test_the_sound_package_passes_as_a_mutant_without_a_change() -> None:
    sound = mutants.Mutant("none", "params.py", "def flatten(", "def flatten(", survives=True)
    assert not mutants.run(sound)


def test_a_mutant_whose_line_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"stands 0 times in params\.py"):
        mutants.run(mutants.Mutant("gone", "params.py", "no such line", ""))
