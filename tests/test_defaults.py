"""The defaults of K-FAC train on small batches, where the paper's rule of lambda does not."""

from __future__ import annotations

import pytest

import kfac_ref as kr
from kfac_ref import training

from . import defaults
from .problems import problem

TASK = "digits 64-8-10 tanh"


def test_training_tells_k_fac_the_number_of_examples() -> None:
    p = problem("categorical", N=20)
    seen = []

    class Watching(kr.optimizers.KFAC):
        def step(self, *arguments):
            seen.append(self.examples)
            return super().step(*arguments)

    for opt in (Watching(p.model, tau1=0.5), Watching(p.model, tau1=0.5, examples=7)):
        training.train(opt, p.at.weights, p.at.x, p.y, 2, training.fixed(10), progress=False)
    assert seen == [20, 20, 7, 7]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [20, 50])
def test_a_classifier_on_small_batches_keeps_its_fit(batch: int) -> None:
    h = defaults.losses(defaults.TASKS[TASK](), batch, 0, 1500)
    assert h[-1] < 0.03
    assert defaults.lost(h)[0] < 1


@pytest.mark.slow
def test_the_paper_s_rule_loses_it() -> None:
    h = defaults.losses(defaults.TASKS[TASK](), 50, 0, 1500, **defaults.BEFORE)
    assert min(h) < 0.1
    assert h[-1] > h[0]
