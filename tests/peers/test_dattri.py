"""dattri: its EK-FAC is named, from the numbers that its own functions return.

It builds its Fisher from the gradients that it is given: here, the columns of the exact Fisher as additional examples.
It takes rows for columns, so its numbers depend on the signs of the eigenvectors; here they are NumPy's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import Problem, check
from tests import require
from tests.peers import cases

require.peer("dattri", "dattri")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def ekfac(case: Problem) -> tuple[list[Any], list[Any]]:
    """Return their scales, and minus their solve with the gradient as [W b]."""
    import torch
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.func import fisher

    r = cases.reference(case)
    rows, grads = {}, []
    for i, (a, g) in enumerate(zip(r["a_bar"], r["g_exact"], strict=True)):
        K = len(g)                                          # the mean over K N examples of K times the squares
        m = g.shape[-1]
        output = SimpleNamespace(grad=torch.tensor(np.sqrt(K) * g.reshape(-1, m)), size=lambda _, m=m: m)
        rows[f"{i}"] = torch.tensor(np.tile(a, (K, 1))), output
    some = torch.ones(len(rows["0"][0]), 1)
    q = {name: [torch.tensor(np.linalg.eigh(S.numpy())[1]) for S in pair]
         for name, pair in fisher._update_covariance({}, rows, 0, some).items()}
    scales = fisher._update_lambda({}, rows, q, 0, some)
    layers = torch.nn.Sequential(*(torch.nn.Linear(W.shape[1] - 1, len(W)) for W in case.weights)).double()
    made = SimpleNamespace(task=SimpleNamespace(model=layers), layer_name=[
        f"{i}.{part}" for i in range(len(layers)) for part in ("weight", "bias")],
        module_name=list(rows), name_to_module=dict(layers.named_modules()), cached_q=q, cached_lambdas=scales,
        damping=case.damping)
    for V in r["gradient"]:
        grads += [V[:, :-1].ravel(), V[:, -1]]
    solved = IFAttributorEKFAC.transform_test_rep(made, 0, torch.tensor(np.concatenate(grads))[None])[0].numpy()
    steps, start = [], 0
    for V in r["gradient"]:
        flat = -solved[start:start + V.size]
        steps.append(np.column_stack([flat[:-len(V)].reshape(len(V), -1), flat[-len(V):]]))
        start += V.size
    return [scales[name].numpy() for name in rows], steps


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_its_rotation_and_its_flattening_are_named(likelihood: str) -> None:
    case = cases.case(likelihood)
    scales, step = ekfac(case)
    r = cases.reference(case)
    report = check(case, {"A": r["A"], "G": r["G"], "gradient": r["gradient"], "ekfac_scales": scales,
                          "ekfac_step": step})
    assert [set(e.names) for e in report.explanations] == [{
        "eigenvectors taken as rows", "weight and bias flattened apart and reshaped together"}], str(report)
