"""BackPACK: KFLR (exact), KFAC (samples of its own), KFRA; no empirical G and no step."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref.oracle import Problem
from kfac_ref.oracle.dialects import DIALECTS
from tests import require
from tests.peers import cases
from tests.peers.cases import TOLERANCE

require.peer("backpack", "backpack-for-pytorch")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
DIALECT = "backpack"
DIALECTS_HERE = (DIALECT,)


def after_backward(case: Problem, extension: Any, reduction: str = "mean", seed: int = 0) -> list[Any]:
    """Return the Linear modules after a backward pass with an extension."""
    import torch
    from backpack import backpack, extend

    net = extend(cases.network(case))
    x, y = cases.tensors(case)
    loss = extend(cases.torch_loss(case, reduction))(net(x), y)
    torch.manual_seed(seed)
    with backpack(extension):
        loss.backward()
    return [module for module in net if hasattr(module, "weight")]


def draws(case: Problem, M: int, seed: int) -> Any:
    """Return the targets that KFAC draws after this seed; the Gaussian ones brought to variance 1."""
    import torch

    z = torch.from_numpy(np.array(case.at().z))
    torch.manual_seed(seed)
    if case.likelihood == "categorical":
        return torch.distributions.Categorical(torch.softmax(z, dim=1)).sample((M,)).numpy()
    t = torch.normal(mean=torch.zeros((M, *z.shape)), std=2**-0.5)
    return (z + 2**0.5 * t).numpy()


def quantities(case: Problem, dialect: str = DIALECT) -> dict[str, Any]:
    """Return what they compute, as they do."""
    from backpack.extensions import KFLR

    layers = after_backward(case, KFLR())
    for layer in layers:                                    # the block of the bias is G once more
        np.testing.assert_array_equal(layer.bias.kflr[0], layer.weight.kflr[0])
        assert len(layer.bias.kflr) == 1
    scale, net = DIALECTS[DIALECT].factor("gradient", case), cases.network(case)
    return {"A": [layer.weight.kflr[1].numpy() for layer in layers],
            "G": [layer.weight.kflr[0].numpy() for layer in layers],
            "gradient": cases.pairs(cases.torch_gradient(case, net, scale))}


def supports(case: Problem) -> bool:
    """Return whether they can be run on it."""
    return case.likelihood != "bernoulli"


def known(case: Problem, quantity: str) -> str | None:
    """Return why they differ, where they are known to."""
    return None


@pytest.mark.parametrize("case", cases.those(supports), ids=lambda c: c.name)
def test_they_agree_through_the_dialect(case: Problem) -> None:
    assert cases.disagreements(DIALECT, quantities(case), case, known) == {}


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_their_samples_give_our_sampled_G(likelihood: str) -> None:
    from backpack.extensions import KFAC

    case, M = cases.case(likelihood), 7
    layers = after_backward(case, KFAC(mc_samples=M), seed=3)
    G = [layer.weight.kfac[0].numpy() for layer in layers]
    given = case.replace(targets=draws(case, M, seed=3))
    assert cases.differences(DIALECT, {"G_sampled": G}, given)["G_sampled"] < TOLERANCE
    assert cases.differences(DIALECT, {"G": G}, case)["G"] > 0.01


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_kfra_is_our_kfra(likelihood: str) -> None:
    from backpack.extensions import KFRA

    case = cases.case(likelihood)
    layers = after_backward(case, KFRA())
    G = DIALECTS[DIALECT].ours({"G": [layer.weight.kfra[0].numpy() for layer in layers]}, case)["G"]
    for theirs, (_, expected) in zip(G, kr.factors.kfra_factors(case.at()).layers, strict=True):
        assert cases.distance(theirs, expected) < TOLERANCE


@pytest.mark.parametrize(("likelihood", "factor"), [("categorical", 11), ("gaussian", 55)])
def test_a_sum_instead_of_a_mean_multiplies_G_and_not_A(likelihood: str, factor: int) -> None:
    from backpack.extensions import KFLR

    case = cases.case(likelihood)                           # N = 11, C = 5
    for mean, total in zip(after_backward(case, KFLR()), after_backward(case, KFLR(), "sum"), strict=True):
        assert cases.distance(total.weight.kflr[0], factor * mean.weight.kflr[0]) < TOLERANCE
        assert cases.distance(total.weight.kflr[1], mean.weight.kflr[1]) < TOLERANCE


def test_several_bits_are_refused() -> None:
    from backpack.extensions import KFLR

    with pytest.raises(NotImplementedError, match="scalar-valued"):
        after_backward(cases.case("bernoulli"), KFLR())


def test_the_default_is_that_of_the_table() -> None:
    from backpack.extensions import KFAC

    assert inspect.signature(KFAC).parameters["mc_samples"].default == 1
