"""NNGeometry: FIM (exact) and FIM_MonteCarlo (its own samples); the step by solvePVec; no empirical G."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import Problem
from kfac_ref.oracle.dialects import DIALECTS
from tests import require
from tests.peers import cases
from tests.peers.cases import TOLERANCE

require.peer("nngeometry", "nngeometry")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
DIALECT = "nngeometry"
VARIANTS = {"categorical": "classif_logits", "gaussian": "regression"}
DIALECTS_HERE = (DIALECT,)


def fisher(case: Problem, net: Any, representation: Any, batch: int | None = None) -> Any:
    """Return their exact Fisher in a representation."""
    from nngeometry.metrics import FIM

    return FIM(net, loader(case, batch), representation, variant=VARIANTS[case.likelihood])


def loader(case: Problem, batch: int | None = None) -> Any:
    """Return the examples in their order."""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*cases.tensors(case)), batch_size=batch or len(case.x))


def factors(F: Any, net: Any) -> tuple[list[Any], list[Any]]:
    """Return A and G, layer by layer."""
    found = [F.data[name] for name in cases.linear_names(net)]
    return [A.numpy() for A, _ in found], [G.numpy() for _, G in found]


def quantities(case: Problem, dialect: str = DIALECT) -> dict[str, Any]:
    """Return what they compute, as they do."""
    import torch
    from nngeometry.object import PMatKFAC, PVector

    net = cases.network(case)
    F = fisher(case, net, PMatKFAC)
    A, G = factors(F, net)
    gradient = cases.torch_gradient(case, net, DIALECTS[dialect].factor("gradient", case))
    layers = F.generator.layer_collection
    v = PVector(layers, vector_repr=torch.cat([g.reshape(-1) for g in gradient]))
    solved = F.solvePVec(v, regul=case.damping * DIALECTS[dialect].factor("damping", case)).to_dict()
    dense = F.to_torch().numpy()
    ends = np.cumsum([0] + [W.size for W in case.weights])
    return {"A": A, "G": G, "gradient": cases.pairs(gradient),
            "step": cases.pairs([-u for name in cases.linear_names(net) for u in solved[name]]),
            "kfac_block": [dense[a:b, a:b] for a, b in itertools.pairwise(ends)]}


def supports(case: Problem) -> bool:
    """Return whether they can be run on it: no bits, and a softmax of at least two."""
    return case.likelihood == "gaussian" or (case.likelihood == "categorical" and case.sizes[-1] > 1)


def known(case: Problem, quantity: str) -> str | None:
    """Return why they differ, where they are known to."""
    if case.name == "saturated-categorical" and quantity in ("G", "kfac_block", "step"):
        return "1 - the cumulated probabilities has no digit left where it rounds to 0"
    return None


@pytest.mark.parametrize("case", cases.those(supports), ids=lambda c: c.name)
def test_they_agree_through_the_dialect(case: Problem) -> None:
    assert cases.disagreements(DIALECT, quantities(case), case, known) == {}


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_batches_add_up(likelihood: str) -> None:
    from nngeometry.object import PMatKFAC

    case = cases.case(likelihood)
    net = cases.network(case)
    whole, parts = (factors(fisher(case, net, PMatKFAC, batch), net) for batch in (None, 4))
    for a, b in zip([*whole[0], *whole[1]], [*parts[0], *parts[1]], strict=True):
        assert cases.distance(a, b) < TOLERANCE


def test_each_factor_alone_is_not_ours_and_sampling_scales_it_by_M() -> None:
    import torch
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatKFAC

    case, M = cases.case("categorical"), 7
    net = cases.network(case)
    torch.manual_seed(3)
    A, G = factors(FIM_MonteCarlo(net, loader(case), PMatKFAC, trials=M), net)
    torch.manual_seed(3)
    torch.empty((), dtype=torch.int64).random_()            # the loader draws a seed first
    p = torch.softmax(torch.from_numpy(np.array(case.at().z)), dim=1)
    given = case.replace(targets=torch.multinomial(p, M, replacement=True).numpy().T)
    assert max(cases.differences(DIALECT, {"A": A, "G_sampled": G}, given).values()) < TOLERANCE
    for theirs, ours in zip(A, cases.reference(case)["A"], strict=True):
        np.testing.assert_allclose(np.trace(theirs) / np.trace(ours), 7**0.5, rtol=1e-12)


def test_the_bias_is_interleaved_where_it_is_not_split() -> None:
    from nngeometry.object import PMatKFAC

    case = cases.case("categorical")
    dense = fisher(case, cases.network(case), PMatKFAC).to_torch(split_weight_bias=False).numpy()
    A, G = cases.reference(case)["A"][0], cases.reference(case)["G"][0]
    n = case.weights[0].size
    assert cases.distance(dense[:n, :n], np.kron(G, A)) < TOLERANCE                  # rows of [W b]


def test_float64_needs_the_default_dtype_to_be_float64() -> None:
    import torch
    from nngeometry.object import PMatKFAC

    case = cases.case("categorical")
    net = cases.network(case)
    torch.set_default_dtype(torch.float32)
    try:
        with pytest.raises(RuntimeError, match="same dtype"):
            fisher(case, net, PMatKFAC)
    finally:
        torch.set_default_dtype(torch.float64)
