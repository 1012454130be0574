"""ASDL (asdfghjkl): exact, empirical, its own samples; the preconditioned gradient of KfacGradientMaker."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import Problem
from kfac_ref.oracle.dialects import DIALECTS
from tests import require
from tests.peers import cases
from tests.peers.cases import TOLERANCE

require.peer("asdl", "asdfghjkl")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
DIALECT = "asdl"
LOSSES = {"categorical": "cross_entropy", "gaussian": "mse"}
DIALECTS_HERE = (DIALECT,)


def layers_of(net: Any) -> list[Any]:
    """Return the Linear modules."""
    return [module for module in net if hasattr(module, "weight")]


def modules(case: Problem, fisher: str, reduction: str = "mean", M: int = 1, seed: int = 0) -> list[Any]:
    """Return the Linear modules, with the Fisher and the gradient in them."""
    from asdl.fisher import FisherConfig, get_fisher_maker

    net = cases.network(case)
    x, y = cases.tensors(case)
    maker = get_fisher_maker(net, FisherConfig(fisher_type=fisher, fisher_shapes=["kron"], n_mc_samples=M, seed=seed,
                                               loss_type=LOSSES[case.likelihood], data_size=len(case.x)))
    maker.setup_loss_call(cases.torch_loss(case, reduction), maker.setup_model_call(net, x), y)
    maker.forward_and_backward(calc_loss_grad=True)
    return layers_of(net)


def factors(found: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return A and G, layer by layer."""
    kron = [module.fisher.kron for module in found]
    return [k.A.detach().numpy() for k in kron], [k.B.detach().numpy() for k in kron]


def draws(case: Problem, M: int, seed: int) -> Any:
    """Return the targets that it draws after this seed."""
    import torch

    z = torch.from_numpy(np.array(case.at().z))
    torch.manual_seed(seed)
    drawn = (torch.distributions.Categorical(torch.softmax(z, dim=-1)) if case.likelihood == "categorical"
             else torch.distributions.Normal(z, 1.0))
    return torch.stack([drawn.sample() for _ in range(M)]).numpy()


def preconditioned(case: Problem, fisher: str, **settings: Any) -> tuple[list[Any], list[Any]]:
    """Return minus the preconditioned gradient of the loss, without weight decay, and the modules."""
    from asdl import KfacGradientMaker, PreconditioningConfig

    net = cases.network(case)
    x, y = cases.tensors(case)
    maker = KfacGradientMaker(net, PreconditioningConfig(data_size=len(case.x), **settings), fisher_type=fisher,
                              loss_type=LOSSES[case.likelihood])
    maker.setup_loss_call(cases.torch_loss(case), maker.setup_model_call(net, x), y)
    maker.forward_and_backward()
    return cases.pairs([-p.grad for p in net.parameters()]), layers_of(net)


def quantities(case: Problem, dialect: str = DIALECT) -> dict[str, Any]:
    """Return what they compute, as they do."""
    found: dict[str, Any] = {}
    exact = modules(case, "fisher_exact")
    found["A"], found["G"] = factors(exact)
    found["G_empirical"] = factors(modules(case, "fisher_emp"))[1]
    decay = case.weight_decay * DIALECTS[dialect].factor("gradient", case)
    found["gradient"] = [((m.weight.grad + decay * m.weight).detach().numpy(),
                          (m.bias.grad + decay * m.bias).detach().numpy()) for m in exact]
    return found


def supports(case: Problem) -> bool:
    """Return whether they can be run on it."""
    return case.likelihood in LOSSES


def known(case: Problem, quantity: str) -> str | None:
    """Return why they differ, where they are known to."""
    return None


@pytest.mark.parametrize("case", cases.those(supports), ids=lambda c: c.name)
def test_they_agree_through_the_dialect(case: Problem) -> None:
    assert cases.disagreements(DIALECT, quantities(case), case, known) == {}


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_the_reduction_of_the_loss_is_overridden(likelihood: str) -> None:
    case = cases.case(likelihood)
    for fisher in ("fisher_exact", "fisher_emp"):
        for mean, total in zip(factors(modules(case, fisher)), factors(modules(case, fisher, "sum")), strict=True):
            assert max(map(cases.distance, mean, total)) < TOLERANCE


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("M", [1, 7])
def test_G_of_M_samples_is_one_M_th_of_what_it_should_be(likelihood: str, M: int) -> None:
    case = cases.case(likelihood)
    A, G = factors(modules(case, "fisher_mc", M=M, seed=3))
    given = case.replace(targets=draws(case, M, seed=3))
    assert max(cases.differences(DIALECT, {"A": A, "G_sampled": G}, given).values()) < TOLERANCE
    for theirs, expected in zip(G, cases.reference(given)["G_sampled"], strict=True):
        np.testing.assert_allclose(np.trace(expected) / np.trace(theirs), M, rtol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("fisher", ["fisher_exact", "fisher_emp"])
def test_the_step_is_that_of_separate_blocks(likelihood: str, fisher: str) -> None:
    case = cases.case(likelihood)
    d, ours = DIALECTS[DIALECT], cases.reference(case)
    kind, name = ("G", "step") if fisher == "fisher_exact" else ("G_empirical", "step_empirical")
    damping = case.damping * d.factor(kind, case)           # A has the scale 1
    theirs = d.ours({"direction": preconditioned(case, fisher, damping=damping)[0]}, case)["direction"]
    loss = [V - case.weight_decay * W for V, W in zip(ours["gradient"], case.weights, strict=True)]
    for step, expected in zip(theirs, cases.separate_step(ours["A"], ours[kind], loss, case.damping), strict=True):
        assert cases.distance(step / d.factor(name, case), expected) < TOLERANCE


def test_the_running_average_weighs_the_new_term_and_starts_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    case = cases.case("categorical")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="NVTX"):
            preconditioned(case, "fisher_exact", damping=0.3, ema_decay=0.125)
        monkeypatch.setattr("torch.cuda.nvtx.range_push", lambda *_: 0)
        monkeypatch.setattr("torch.cuda.nvtx.range_pop", lambda *_: 0)
    found = preconditioned(case, "fisher_exact", damping=0.3, ema_decay=0.125)[1]
    for module, A in zip(found, cases.reference(case)["A"], strict=True):
        assert cases.distance(module.fisher.kron.A, 0.125 * A[:-1, :-1]) < TOLERANCE


@pytest.mark.parametrize("fisher", ["fisher_exact", "fisher_emp"])
def test_the_damping_of_a_factor_has_a_floor(fisher: str) -> None:
    case = cases.case("categorical")
    module = preconditioned(case, fisher, damping=1e-30)[1][0]
    A = cases.reference(case)["A"][0][:-1, :-1]
    assert cases.distance(module.fisher.kron.A_inv, np.linalg.inv(A + 1e-7 * np.eye(3))) < TOLERANCE


def test_the_default_is_that_of_the_table() -> None:
    from asdl import KfacGradientMaker

    assert inspect.signature(KfacGradientMaker).parameters["fisher_type"].default == "fisher_mc"
