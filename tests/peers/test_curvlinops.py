"""curvlinops: type-2 (exact), given samples, empirical; joint and separate bias; factored and exact damping."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest

from kfac_ref.oracle import Problem
from kfac_ref.oracle.dialects import DIALECTS
from tests import require
from tests.peers import cases
from tests.peers.cases import TOLERANCE

require.peer("curvlinops", "curvlinops-for-pytorch")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
JOINT, SEPARATE = "curvlinops", "curvlinops-separate"
DIALECTS_HERE = (JOINT, SEPARATE)


def operator(case: Problem, net: Any, fisher: str, dialect: str = JOINT, reduction: str = "mean") -> Any:
    """Return their operator with its factors; samples of "mc" are the problem's."""
    import torch
    from curvlinops import KFACLinearOperator

    class Given(KFACLinearOperator):
        """Draws the given targets one after another."""

        def draw_label(self, output: Any) -> Any:
            self.drawn = getattr(self, "drawn", -1) + 1
            t = torch.from_numpy(np.array(case.targets[self.drawn]))
            # Their Gaussian has variance 1/2: the same draw of a standard normal variable lies nearer.
            return output.detach() + (t - output.detach()) / 2**0.5 if case.likelihood == "gaussian" else t

    op = Given(net, cases.torch_loss(case, reduction), list(net.parameters()), [cases.tensors(case)],
               check_deterministic=False, fisher_type=fisher, mc_samples=len(case.targets) if fisher == "mc" else 1,
               separate_weight_and_bias=dialect == SEPARATE)
    op.compute_kronecker_factors()
    return op


def factors(op: Any, net: Any) -> tuple[list[Any], list[Any]]:
    """Return A and G, layer by layer."""
    state, names = op.state_dict(), cases.linear_names(net)
    return ([state["input_covariances"][name].numpy() for name in names],
            [state["gradient_covariances"][name].numpy() for name in names])


def step(case: Problem, op: Any, gradient: list[Any], rule: str) -> list[Any]:
    """Return minus the preconditioned gradient, in pairs (W, b)."""
    from curvlinops import KFACInverseLinearOperator

    damping = case.damping * DIALECTS[JOINT].factor("damping", case)
    inverse = KFACInverseLinearOperator(op, damping=damping, min_damping=0.0, **{rule: True})
    return cases.pairs([-V for V in inverse @ gradient])


def quantities(case: Problem, dialect: str = JOINT) -> dict[str, Any]:
    """Return what they compute, as they do."""
    import torch

    net = cases.network(case)
    exact = operator(case, net, "type-2", dialect)
    found: dict[str, Any] = {}
    found["A"], found["G"] = factors(exact, net)
    found["G_empirical"] = factors(operator(case, net, "empirical", dialect), net)[1]
    if case.targets is not None:
        found["G_sampled"] = factors(operator(case, net, "mc", dialect), net)[1]
    gradient = cases.torch_gradient(case, net, DIALECTS[dialect].factor("gradient", case))
    found["gradient"] = cases.pairs(gradient)
    if dialect == SEPARATE:                                 # what follows is another approximation
        return found
    for name, rule in (("step", "use_heuristic_damping"), ("step_exact_damping", "use_exact_damping")):
        found[name] = step(case, exact, gradient, rule)
    dense = (exact @ torch.eye(exact.shape[0])).detach().numpy()
    ends = np.cumsum([0] + [W.size for W in case.weights])
    found["kfac_block"] = [dense[a:b, a:b] for a, b in itertools.pairwise(ends)]
    return found


def supports(case: Problem) -> bool:
    """Return whether they can be run on it."""
    return case.likelihood != "bernoulli" or bool(np.isin(case.y, (0, 1)).all())


def known(case: Problem, quantity: str) -> str | None:
    """Return why they differ, where they are known to."""
    if (case.name, quantity) == ("saturated-categorical", "G_sampled"):
        return "the gradient p - 1 has no digit left where p rounds to 1"
    return None


@pytest.mark.parametrize("case", cases.those(supports), ids=lambda c: c.name)
@pytest.mark.parametrize("dialect", DIALECTS_HERE)
def test_they_agree_through_the_dialect(case: Problem, dialect: str) -> None:
    assert cases.disagreements(dialect, quantities(case, dialect), case, known) == {}


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_the_step_of_separate_blocks_is_another_one(likelihood: str) -> None:
    case = cases.case(likelihood)
    net, ours, d = cases.network(case), cases.reference(case), DIALECTS[SEPARATE]
    gradient = cases.torch_gradient(case, net, d.factor("gradient", case))
    given = step(case, operator(case, net, "type-2", SEPARATE), gradient, "use_heuristic_damping")
    given = d.ours({"direction": given}, case)["direction"]     # the step has the scale 1
    alone = cases.separate_step(ours["A"], ours["G"], ours["gradient"], case.damping)
    for theirs, expected, joint in zip(given, alone, ours["step"], strict=True):
        assert cases.distance(theirs, expected) < TOLERANCE
        assert cases.distance(theirs, joint) > 0.1


@pytest.mark.parametrize(("likelihood", "factor"), [("categorical", 11), ("gaussian", 55), ("bernoulli", 55)])
def test_a_sum_instead_of_a_mean_multiplies_G_and_not_A(likelihood: str, factor: int) -> None:
    case = cases.case(likelihood)                           # N = 11, C = 5
    net = cases.network(case)
    for fisher in ("type-2", "empirical"):
        A, G = factors(operator(case, net, fisher), net)
        A_sum, G_sum = factors(operator(case, net, fisher, reduction="sum"), net)
        for a, b in zip([*A_sum, *G_sum], [*A, *(factor * g for g in G)], strict=True):
            assert cases.distance(a, b) < TOLERANCE


def test_the_gradient_covariances_are_in_the_order_of_the_backward_pass() -> None:
    case = cases.case("categorical")
    net = cases.network(case)
    state = operator(case, net, "type-2").state_dict()
    assert list(state["input_covariances"]) == cases.linear_names(net)
    assert list(state["gradient_covariances"]) == cases.linear_names(net)[::-1]


def test_only_whole_bits_have_an_exact_fisher() -> None:
    case = cases.case("bernoulli")
    grey = case.replace(y=0.5 * case.y)
    with pytest.raises(NotImplementedError, match="binary targets"):
        operator(grey, cases.network(grey), "type-2")


def test_batches_add_up_and_forward_only_is_the_identity() -> None:
    from curvlinops import KFACLinearOperator

    case = cases.case("categorical")
    net, (x, y) = cases.network(case), cases.tensors(case)
    ours = cases.reference(case)
    for fisher, G in (("type-2", ours["G"]), ("forward-only", [np.eye(len(g)) for g in ours["G"]])):
        op = KFACLinearOperator(net, cases.torch_loss(case), list(net.parameters()), [(x[:4], y[:4]), (x[4:], y[4:])],
                                fisher_type=fisher, separate_weight_and_bias=False, check_deterministic=False)
        op.compute_kronecker_factors()
        found = factors(op, net)
        assert max(map(cases.distance, [*found[0], *found[1]], [*ours["A"], *G])) < TOLERANCE


def test_plain_damping_is_on_each_factor_and_exact_damping_of_separate_blocks_on_each_block() -> None:
    from curvlinops import KFACInverseLinearOperator

    case = cases.case("categorical")
    net, r, damping = cases.network(case), cases.reference(case), 0.3
    gradient = cases.torch_gradient(case, net, 1.0)
    V, A, G = r["gradient"][0], r["A"][0], r["G"][0]
    (W, b), *_ = cases.pairs(KFACInverseLinearOperator(operator(case, net, "type-2"), damping=damping) @ gradient)
    plain = np.linalg.solve(G + damping * np.eye(7), V) @ np.linalg.inv(A + damping * np.eye(4))
    assert cases.distance(np.column_stack([W, b]), plain) < TOLERANCE
    (W, b), *_ = cases.pairs(KFACInverseLinearOperator(
        operator(case, net, "type-2", SEPARATE), damping=damping, use_exact_damping=True) @ gradient)
    block = np.kron(G, A[:-1, :-1]) + damping * np.eye(21)
    assert cases.distance(W, np.linalg.solve(block, V[:, :-1].ravel()).reshape(7, 3)) < TOLERANCE
    assert cases.distance(b, np.linalg.solve(G + damping * np.eye(7), V[:, -1])) < TOLERANCE


def test_the_defaults_are_those_of_the_table() -> None:
    from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

    default = inspect.signature(KFACLinearOperator).parameters
    assert default["fisher_type"].default == "mc"
    assert default["mc_samples"].default == 1
    assert default["separate_weight_and_bias"].default is True
    assert inspect.signature(KFACInverseLinearOperator).parameters["min_damping"].default == 1e-8


def test_factors_asked_for_after_the_check_of_the_default_are_doubled() -> None:
    from curvlinops import KFACLinearOperator

    case = cases.case("categorical")
    net = cases.network(case)
    op = KFACLinearOperator(net, cases.torch_loss(case), list(net.parameters()), [cases.tensors(case)],
                            fisher_type="type-2", separate_weight_and_bias=False)
    for times in (1, 2):                                    # the check has computed them already
        A, G = (list(map(np.copy, found)) for found in factors(op, net))
        for theirs, ours in zip([*A, *G], [*cases.reference(case)["A"], *cases.reference(case)["G"]], strict=True):
            assert cases.distance(theirs, times * ours) < TOLERANCE
        op.compute_kronecker_factors()
