"""Every structure through the same tests, which find the structures by themselves; then what is particular to each."""

from __future__ import annotations

import inspect
import itertools
import math
import re

import numpy as np
import pytest

import kfac_ref as kr
from kfac_ref import approximations, params
from kfac_ref.approximations import Approximation
from kfac_ref.curvature import (
    EKFAC,
    BlockDiagonal,
    BlockTridiagonal,
    Curvature,
    Diagonal,
    Eigenbasis,
    EigenDamped,
    Exact,
    ExactBlockDiagonal,
    ExactDual,
    Full,
    InputOnly,
    OfFactors,
    OfPoint,
    ekfac_over,
)
from kfac_ref.damping import factored_tikhonov, frobenius_pi, trace_pi
from tests.problems import close, direction, problem, relative

#: How every structure is made at a point.
ROWS = {
    EKFAC: approximations.EKFAC,
    BlockDiagonal: approximations.BLOCK_DIAGONAL,
    BlockTridiagonal: approximations.BLOCK_TRIDIAGONAL,
    Diagonal: approximations.DIAGONAL,
    EigenDamped: approximations.EIGEN_DAMPED,
    Eigenbasis: Approximation(None, lambda at, damping, expectation: ekfac_over(
        at.model.parts(at.weights, at.x, size=2), damping, expectation)),
    Exact: approximations.EXACT,
    ExactBlockDiagonal: approximations.EXACT_BLOCK_DIAGONAL,
    ExactDual: Approximation(None, ExactDual),
    Full: approximations.FULL,
    InputOnly: approximations.INPUT_ONLY,
}


def structures():
    """Return every structure that can be made."""
    public = (getattr(kr.curvature, name) for name in kr.curvature.__all__)
    return [s for s in public if isinstance(s, type) and issubclass(s, Curvature) and not inspect.isabstract(s)
            and s not in (OfFactors, OfPoint)]


def build(structure, at, damping):
    return ROWS[structure].at(at, damping)


def dead_relu(likelihood="gaussian"):
    """Return a problem whose hidden layer is off on all inputs, so that the first layer has G = 0."""
    p = problem(likelihood, (3, 4, 2), "relu", N=5)
    first = p.at.weights[0].copy()
    first[:, -1] = -100
    return p._replace(at=p.model.at([first, p.at.weights[1]], p.at.x))


def dead_input(N=60, dtype=np.float64, likelihood="gaussian"):
    """Return a problem with an input that is always 0, so that the first A is singular, and nothing else is."""
    p = problem(likelihood, (3, 4, 2), N=N, dtype=dtype)
    x = p.at.x.copy()
    x[:, 1] = 0
    return p._replace(at=p.model.at(p.at.weights, x))


PROBLEMS = {
    "categorical": problem("categorical", (4, 5, 3)),
    "gaussian": problem("gaussian", (3, 4, 3, 2), ("tanh", "softplus"), N=9),
    "bernoulli": problem("bernoulli", (2, 3, 3), "logistic", N=6),
    "equal widths": problem("gaussian", (3, 3, 3, 3), N=8),        # here cross factors are square, but not symmetric
    "widths of 1": problem("bernoulli", (1, 1, 3, 1), N=5),
    "no bias": problem("bernoulli", (3, 4, 3, 2), N=9, bias=False),
    "some biases": problem("gaussian", (3, 4, 3, 2), ("softplus", "tanh"), N=9, bias=(False, True, False)),
    "one weight": problem("gaussian", (1, 1), N=3),
    "one example": problem("categorical", (4, 3, 3), N=1),
    "rank-deficient": problem("categorical", (6, 5, 4), "relu", N=2),
    "dead layer": dead_relu(),
    "dead input": dead_input(),
}
DAMPING = 0.1


@pytest.fixture(params=PROBLEMS)
def p(request):
    return PROBLEMS[request.param]


def test_every_structure_of_the_package_is_public():
    def below(cls):
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    ours = {s for s in below(Curvature) if s.__module__.startswith("kfac_ref.") and not inspect.isabstract(s)}
    # InEigenbasis leaves the shapes and the precision to those that are made of it.
    assert ours == set(structures()) == set(ROWS)


@pytest.mark.parametrize("structure", structures())
class TestEveryStructure:
    def test_solve_undoes_product(self, structure, p):
        C, V = build(structure, p.at, DAMPING), direction(p)
        for back in (C.solve(C.product(V)), C.product(C.solve(V))):
            assert [b.shape for b in back] == list(p.shapes)
            for b, v in zip(back, V, strict=True):
                close(b, v, rtol=1e-11)

    def test_dense_agrees_with_product_on_every_basis_vector(self, structure, p):
        C = build(structure, p.at, DAMPING)
        basis = np.eye(p.at.model.network.parameters)
        columns = [params.flatten(C.product(params.unflatten(e, p.shapes))) for e in basis]
        close(C.dense(), np.stack(columns, axis=1), rtol=1e-13)

    def test_inverse_dense_is_the_inverse(self, structure, p):
        C = build(structure, p.at, DAMPING)
        close(C.inverse_dense() @ C.dense(), np.eye(len(C.dense())), rtol=1e-11)

    def test_inverse_dense_agrees_with_solve(self, structure, p):
        C, V = build(structure, p.at, DAMPING), direction(p)
        close(C.inverse_dense() @ params.flatten(V), params.flatten(C.solve(V)), rtol=1e-11)

    def test_it_is_symmetric_and_positive_definite_when_damped(self, structure, p):
        for S in (build(structure, p.at, DAMPING).dense(), build(structure, p.at, DAMPING).inverse_dense()):
            close(S, S.T, rtol=1e-13)
            assert np.linalg.eigvalsh(S)[0] > 0

    def test_damping_makes_it_larger(self, structure, p):
        large, small = (build(structure, p.at, damping).dense() for damping in (0.5, 0.1))
        assert np.linalg.eigvalsh(large - small)[0] > 0

    def test_kept_is_the_same_matrix(self, structure, p):
        C, V = build(structure, p.at, DAMPING), direction(p)
        kept = C.kept()
        assert isinstance(kept, structure)
        for ours, theirs in ((kept.solve(V), C.solve(V)), (kept.product(V), C.product(V))):
            close(params.flatten(ours), params.flatten(theirs), rtol=1e-11)
        close(kept.inverse_dense(), C.inverse_dense(), rtol=1e-11)

    def test_directions_are_left_as_they_were(self, structure):
        q = PROBLEMS["gaussian"]
        C, V = build(structure, q.at, DAMPING), direction(q)
        C.product(V)
        C.solve(V)
        for v, before in zip(V, direction(q), strict=True):
            np.testing.assert_array_equal(v, before)

    @pytest.mark.parametrize("number", [float, np.float64])
    def test_float32_stays_float32(self, structure, number):
        q, q32 = (problem("gaussian", (3, 4, 2), dtype=dtype) for dtype in (np.float64, np.float32))
        C, C32 = build(structure, q.at, number(DAMPING)), build(structure, q32.at, number(DAMPING))
        assert C32.dtype == np.float32
        V = direction(q)
        for method in ("product", "solve"):
            single, double = getattr(C32, method)(direction(q32)), getattr(C, method)(V)
            assert {s.dtype for s in single} == {np.dtype(np.float32)}
            # float32 has 7 digits; those that damping of .1 leaves of a curvature of about 10 are 5.
            close(params.flatten(single), params.flatten(double), rtol=1e-4)
        assert C32.dense().dtype == C32.inverse_dense().dtype == np.float32

    def test_a_float64_direction_is_taken_in_float32(self, structure):
        q = problem(dtype=np.float32)
        V = [v.astype(float) for v in direction(q)]
        for U in (build(structure, q.at, DAMPING).product(V), build(structure, q.at, DAMPING).solve(V)):
            assert {u.dtype for u in U} == {np.dtype(np.float32)}

    @pytest.mark.parametrize("method", ["product", "solve"])
    def test_directions_that_do_not_fit_are_refused(self, structure, method):
        q = PROBLEMS["categorical"]
        apply, (first, last) = getattr(build(structure, q.at, DAMPING), method), direction(q)
        nan = last.copy()
        nan[1, 2] = np.nan
        for V, message in (
                ([first], "V must hold one array per layer: expected 2, got 1"),
                ([first, last.T], r"V\[1\] must have shape \(3, 6\), got \(6, 3\)"),
                ([first, last[None]], r"V\[1\] must have shape \(3, 6\), got \(1, 3, 6\)"),
                (params.flatten([first, last]), "V must be a list of 2 arrays, one per layer, got ndarray"),
                ([first, nan], r"V\[1\] must be finite: 1 of 18 entries are NaN or infinite, the first at \(1, 2\)"),
                ([first, last * 1j], r"V\[1\] must hold real numbers, got dtype complex128")):
            with pytest.raises(ValueError, match=message):
                apply(V)

    @pytest.mark.parametrize("damping", [-1e-3, math.nan, math.inf, "much"])
    def test_dampings_that_are_none_are_refused(self, structure, damping):
        with pytest.raises(ValueError, match="damping must be"):
            build(structure, PROBLEMS["one weight"].at, damping)

    def test_dense_forms_refuse_sizes_by_their_bytes(self, structure):
        C = build(structure, PROBLEMS["categorical"].at, DAMPING)
        size = 43 * 43 * 8
        for form in (C.dense, C.inverse_dense):
            with pytest.raises(ValueError, match=f"is 43 x 43 and takes {size:,} bytes, more than max_bytes = "
                                                 f"{size - 1:,}"):
                form(max_bytes=size - 1)
            assert form(max_bytes=size).shape == (43, 43)

    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_undamped_and_singular_it_can_be_looked_at_but_not_solved_with(self, structure, dtype):
        q = dead_input(dtype=dtype)
        C, V = build(structure, q.at, 0.0), direction(q)
        assert abs(np.linalg.eigvalsh(C.dense())[0]) < 100 * np.finfo(dtype).eps * np.abs(C.dense()).max()
        close(C.dense() @ params.flatten(V), params.flatten(C.product(V)), rtol=100 * np.finfo(dtype).eps)
        for refusing in (C, C.kept()):
            with pytest.raises(np.linalg.LinAlgError, match=refusal(structure)) as error:
                refusing.solve(V)
            smallest = float(re.search(refusal(structure), str(error.value))["smallest"])
            assert abs(smallest) < 100 * np.finfo(dtype).eps * np.abs(C.dense()).max()
            with pytest.raises(np.linalg.LinAlgError, match=refusal(structure)):
                refusing.inverse_dense()

    @pytest.mark.parametrize("N", [1, 40])
    def test_undamped_on_a_categorical_whose_last_G_is_singular(self, structure, N):
        q = problem("categorical", (3, 4, 3), N=N)
        C, V = build(structure, q.at, 0.0), direction(q)
        if structure is BlockTridiagonal:                   # its matrix is made of the inverse of that G
            for refusing in (C.dense, C.inverse_dense, lambda: C.product(V), lambda: C.solve(V)):
                with pytest.raises(np.linalg.LinAlgError, match=refusal(structure)):
                    refusing()
            return
        values = np.linalg.eigvalsh(C.dense())
        close(C.dense() @ params.flatten(V), params.flatten(C.product(V)), rtol=1e-12)
        if values[0] < 1e-13 * values[-1]:
            with pytest.raises(np.linalg.LinAlgError, match=refusal(structure)):
                C.solve(V)
        else:
            close(params.flatten(C.solve(C.product(V))), params.flatten(V), rtol=1e-14 * values[-1] / values[0])

    def test_undamped_and_regular_it_is_solved_with(self, structure):
        q = problem("gaussian", (2, 3, 2), N=60)
        C, V = build(structure, q.at, 0.0), direction(q)
        values = np.linalg.eigvalsh(C.dense())
        assert 1 < values[-1] / values[0] < 1e7
        if structure is ExactDual:                          # the examples' space has no undamped inverse
            for refusing in (C.inverse_dense, lambda: C.solve(V)):
                with pytest.raises(np.linalg.LinAlgError, match=refusal(structure)):
                    refusing()
            return
        # Rounding of the product, of size eps, is amplified by the condition number.
        close(params.flatten(C.solve(C.product(V))), params.flatten(V), rtol=1e-14 * values[-1] / values[0])


# What is singular (a factor of a layer, or the matrix by name), its smallest eigenvalue, the remedy.
REFUSAL = (r"(layer \d|Fisher).* singular to rounding.*smallest eigenvalue (is )?(?P<smallest>[-+.e\d]+)"
           r"(, and that of factor [AG] [-+.e\d]+)?; give a larger damping")
REFUSALS = {
    ExactDual: (r"the exact Fisher cannot be solved in the space of the examples without damping: its smallest "
                r"eigenvalue may be (?P<smallest>0); give a larger damping"),
}


def refusal(structure):
    return REFUSALS.get(structure, REFUSAL)


# Messages that name the factor


@pytest.mark.parametrize(("q", "name", "layer"), [
    (dead_input(), "A", 0), (problem("categorical", (3, 4, 3), N=60), "G", 1), (dead_relu(), "G", 0)],
    ids=["dead input", "categorical", "dead layer"])
def test_structures_of_factors_name_the_layer_and_the_factor(q, name, layer):
    with pytest.raises(np.linalg.LinAlgError, match=f"factor {name} of layer {layer} .*smallest eigenvalue is"):
        build(BlockDiagonal, q.at, 0.0).solve(direction(q))
    for structure in (EigenDamped, EKFAC, Eigenbasis):
        with pytest.raises(np.linalg.LinAlgError, match=f"layer {layer} is singular to rounding: .*factor {name} "):
            build(structure, q.at, 0.0).solve(direction(q))


@pytest.mark.parametrize("structure", [BlockDiagonal, EigenDamped, Full])
def test_a_layer_that_is_zero_throughout_is_refused(structure):
    fac = kr.Factors.of_layers([np.eye(2)], [np.zeros((3, 3))], 1)
    with pytest.raises(np.linalg.LinAlgError, match="smallest eigenvalue"):
        structure(fac).solve([np.ones((3, 2))])


def test_structures_of_a_point_name_the_matrix():
    q = dead_input()
    with pytest.raises(np.linalg.LinAlgError, match=r"the exact Fisher \(26 x 26\) is singular"):
        Exact(q.at).solve(direction(q))
    with pytest.raises(np.linalg.LinAlgError, match=r"the Fisher block of layer 0 \(16 x 16\) is singular"):
        ExactBlockDiagonal(q.at).solve(direction(q))
    with pytest.raises(np.linalg.LinAlgError, match=r"the Kronecker-factored Fisher \(26 x 26\) is singular"):
        Full(kr.kronecker_factors(q.at, reach=math.inf)).solve(direction(q))


def test_diagonal_and_input_only_name_the_layer():
    q = dead_input()
    with pytest.raises(np.linalg.LinAlgError, match="the diagonal of layer 0 is singular to rounding"):
        Diagonal(q.at).solve(direction(q))
    with pytest.raises(np.linalg.LinAlgError, match=r"factor A of layer 0 \(4 x 4\) is singular to rounding"):
        InputOnly(kr.kronecker_factors(q.at)).solve(direction(q))


def test_a_damping_that_float32_resolves_is_enough_for_a_wide_layer():
    q, q64 = (problem("categorical", (150, 100, 4), N=8, dtype=dtype) for dtype in (np.float32, np.float64))
    for structure in (EKFAC, EigenDamped, Diagonal):
        single, double = (params.flatten(build(structure, r.at, 1e-3).solve(direction(r))) for r in (q, q64))
        # Eigenvalues are known to 7 digits of the largest, of about 10: which is 3 digits of the damping.
        close(single, double, rtol=1e-3)


@pytest.mark.parametrize(("q", "name", "layer"), [
    (problem("categorical", (3, 4, 3, 3), N=60), "G", 2),
    (problem("gaussian", (3, 2, 4, 3), ("tanh", "identity"), N=60), "G", 1),
    (dead_relu(), "A", 1)], ids=["categorical", "linear layer", "dead layer"])
def test_block_tridiagonal_refuses_a_singular_later_factor_in_product_too(q, name, layer):
    C, V = BlockTridiagonal(kr.kronecker_factors(q.at, reach=1)), direction(q)
    for refusing in (C.dense, lambda: C.product(V)):
        with pytest.raises(np.linalg.LinAlgError, match=f"factor {name} of layer {layer} .*smallest eigenvalue is"):
            refusing()
    for refusing in (C.inverse_dense, lambda: C.solve(V)):
        with pytest.raises(np.linalg.LinAlgError, match=r"factor [AG] of layer \d .*smallest eigenvalue is"):
            refusing()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 3), (5, 3, 4)], ids=["zero", "code layer", "wide"])
def test_block_tridiagonal_refuses_a_linear_hidden_layer_however_it_was_rounded(sizes):
    survivors = []
    for seed in range(40):
        q = problem("gaussian", sizes, "identity", N=60, seed=seed)
        C, V = BlockTridiagonal(kr.kronecker_factors(q.at, reach=1)), direction(q)
        C.product(V)                                        # no factor is singular: Sigma alone is
        if "Sigma of layer 0 (factors A and G given layer 1) is singular to rounding" not in message(C.solve, V):
            survivors.append(seed)
    assert survivors == []


def message(solve, V):
    """Return what a solve is refused with, or nothing."""
    try:
        solve(V)
    except np.linalg.LinAlgError as error:
        return str(error)
    return ""


def test_a_singular_G_is_refused_however_it_was_rounded():
    survivors = []
    for seed in range(40):
        q = problem("categorical", (3, 4, 3), N=40, seed=seed)
        try:
            BlockDiagonal(kr.kronecker_factors(q.at)).solve(direction(q))
            survivors.append(seed)
        except np.linalg.LinAlgError:
            pass
    assert survivors == []


# What each one is


def blocks(at):
    """Return the slice of each layer in a vector of parameters."""
    ends = np.cumsum([0] + [m * n for m, n in at.model.network.shapes])
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def only_diagonal_blocks(S, at):
    D = np.zeros_like(S)
    for rows in blocks(at):
        D[rows, rows] = S[rows, rows]
    return D


@pytest.mark.parametrize("pi", [trace_pi, frobenius_pi, lambda A, G: 2.0])
def test_block_diagonal_is_a_product_of_damped_factors(p, pi):
    fac = kr.kronecker_factors(p.at)
    expected = np.zeros((p.at.model.network.parameters,) * 2)
    for rows, (A, G) in zip(blocks(p.at), fac.layers, strict=True):
        expected[rows, rows] = np.kron(*factored_tikhonov(A, G, DAMPING, pi(A, G)))
    close(BlockDiagonal(fac, DAMPING, pi).dense(), expected, rtol=1e-14)
    assert BlockDiagonal(fac, DAMPING, pi).pis == tuple(pi(A, G) for A, G in fac.layers)


def test_the_other_structures_damp_with_a_multiple_of_the_identity(p):
    P = p.at.model.network.parameters
    fac, F = kr.kronecker_factors(p.at, reach=math.inf), kr.fisher_matrix(p.at)
    layers = range(len(fac))
    F_tilde = np.block([[np.kron(fac.A[i, j], fac.G[i, j]) for j in layers] for i in layers])
    for C, S in ((Exact(p.at, DAMPING), F), (ExactBlockDiagonal(p.at, DAMPING), only_diagonal_blocks(F, p.at)),
                 (Full(fac, DAMPING), F_tilde), (EigenDamped(fac, DAMPING), only_diagonal_blocks(F_tilde, p.at)),
                 (ExactDual(p.at, DAMPING), F), (Diagonal(p.at, DAMPING), np.diag(np.diag(F)))):
        close(C.dense(), S + DAMPING * np.eye(P), rtol=1e-13)


def test_the_structures_differ():
    q = PROBLEMS["categorical"]
    dense = {s: build(s, q.at, DAMPING).dense() for s in structures()}
    close(dense.pop(ExactDual), dense[Exact], rtol=1e-12)           # the same matrix, solved in another space
    close(dense.pop(Eigenbasis), dense[EKFAC], rtol=1e-12)          # the same matrix, of a data set in parts
    for S, T in itertools.combinations(dense.values(), 2):
        assert relative(S, T) > 1e-3


def test_factored_and_exact_damping_differ_and_agree_undamped():
    q = problem("gaussian", (2, 3, 2), N=60)
    fac = kr.kronecker_factors(q.at)
    V = direction(q)
    assert relative(BlockDiagonal(fac, DAMPING).dense(), EigenDamped(fac, DAMPING).dense()) > 1e-3
    assert relative(params.flatten(BlockDiagonal(fac, DAMPING).solve(V)),
                    params.flatten(EigenDamped(fac, DAMPING).solve(V))) > 1e-3
    close(BlockDiagonal(fac).dense(), EigenDamped(fac).dense(), rtol=1e-14)
    # The condition number of the largest block is about 1e3.
    close(params.flatten(BlockDiagonal(fac).solve(V)), params.flatten(EigenDamped(fac).solve(V)), rtol=1e-11)


def test_eigen_damped_is_the_solution_of_appendix_B(p):
    fac, V, root = kr.kronecker_factors(p.at), direction(p), math.sqrt(DAMPING)
    for (A, G), v, u in zip(fac.layers, V, EigenDamped(fac, DAMPING).solve(V), strict=True):
        # Appendix B wants definite matrices in one of the two products: here the damping.
        dI, dJ = root * np.eye(len(A)), root * np.eye(len(G))
        close(u, kr.kronecker.solve_sum(dI, dJ, A, G, v), rtol=1e-11)


def test_block_diagonal_undamped_holds_the_blocks_of_full(p):
    fac = kr.kronecker_factors(p.at, reach=math.inf)
    full = Full(fac).dense()
    close(BlockDiagonal(fac).dense(), only_diagonal_blocks(full, p.at), rtol=1e-14)
    if len(fac) > 1 and any(G.any() for (i, j), G in fac.G.items() if i != j):
        assert relative(BlockDiagonal(fac).dense(), full) > 1e-3


@pytest.mark.parametrize("reach", [0, 1])
def test_full_needs_the_cross_factors(reach):
    q = problem(sizes=(4, 3, 5, 2))
    with pytest.raises(ValueError, match=f"factors hold nothing for layers 0 and {reach + 1}: .* need an estimate "
                                         "with a reach of at least"):
        Full(kr.kronecker_factors(q.at, reach=reach))
    assert Full(kr.kronecker_factors(q.at, reach=2), DAMPING).dense().shape == (47, 47)


# A structure of the user's own


class RankOne(Curvature):
    """``c I + u u^T``, with the four members that a user writes."""

    def __init__(self, u, c):
        self.u, self.c = u, c

    @property
    def shapes(self):
        return [u.shape for u in self.u]

    @property
    def dtype(self):
        return self.u[0].dtype

    def product(self, V):
        return params.add(params.scale(self.c, V), params.scale(params.inner(self.u, V), self.u))

    def solve(self, V):
        share = params.inner(self.u, V) / (self.c + params.inner(self.u, self.u))
        return params.scale(1 / self.c, params.add(V, params.scale(-share, self.u)))


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_a_structure_of_the_users_own_gets_its_dense_forms(dtype, rtol):
    C = RankOne(direction(problem(dtype=dtype)), 2.0)
    u = params.flatten(C.u)
    expected = 2 * np.eye(len(u)) + np.outer(u, u)
    close(C.dense(), expected, rtol)
    close(C.inverse_dense(), np.linalg.solve(expected, np.eye(len(u))), rtol)
    assert C.dense().dtype == C.inverse_dense().dtype == dtype
    assert C.kept() is C
    size = len(u) ** 2 * C.dtype.itemsize
    for form in (C.dense, C.inverse_dense):
        with pytest.raises(ValueError, match=f"the dense RankOne is 43 x 43 and takes {size:,} bytes"):
            form(max_bytes=size - 1)


def test_a_structure_without_its_members_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Curvature()


def test_factors_and_points_are_not_taken_for_each_other():
    q = PROBLEMS["categorical"]
    for structure in set(structures()) - {Eigenbasis}:
        wrong = kr.kronecker_factors(q.at) if issubclass(structure, OfPoint) else q.at
        with pytest.raises(ValueError, match=r"^(at must be a Point|factors must be Factors), got"):
            structure(wrong, damping=DAMPING)


@pytest.mark.parametrize("structure", [kr.curvature.EigenDamped, kr.curvature.BlockDiagonal, kr.curvature.InputOnly])
def test_factors_with_nan_are_refused_where_they_are_solved_with(structure):
    q = PROBLEMS["categorical"]
    fac = kr.kronecker_factors(q.at)
    broken = kr.Factors({key: np.full_like(A, np.nan) for key, A in fac.A.items()}, fac.G, fac.n)
    with pytest.raises(ValueError, match=r"factor A of layer 0 must be finite"):
        structure(broken, DAMPING).solve(q.at.gradient(q.y))


def test_factors_that_do_not_fit_are_refused():
    A, G = np.eye(3), np.eye(2)
    with pytest.raises(ValueError, match=r"A and G must hold one matrix for each layer, got 2 and 1"):
        kr.Factors.of_layers([A, A], [G], 1)
    with pytest.raises(ValueError, match=r"G\[0, 0\] must be square, got shape \(2, 1\)"):
        kr.Factors.of_layers([A], [G[:, :1]], 1)
    with pytest.raises(ValueError, match=r"A and G must be mappings with the same pairs of layers, got \[\(0, 0\)\]"):
        kr.Factors({(0, 0): A}, {(0, 1): G}, 1)
    with pytest.raises(ValueError, match=r"A\[0, 1\] must be a matrix, got shape \(3,\)"):
        kr.Factors({(0, 0): A, (0, 1): A[0]}, {(0, 0): G, (0, 1): G}, 1)


@pytest.mark.parametrize("row", approximations.TABLE)
def test_what_is_wrong_with_an_expectation_is_said_whatever_the_row(row):
    q = problem("categorical", (4, 5, 3), N=40)
    for wrong, message in ((lambda at: at.z, r"expectation must return a stack \(K, 40, 3\), got \(40, 3\)"),
                           (lambda at: np.ones((2, 39, 3)), r"expectation must return a stack \(K, 40, 3\), got"),
                           (np.ones((1, 40, 3)), "expectation must be a function of a point, such as exact")):
        with pytest.raises(ValueError, match=message):
            approximations.TABLE[row].at(q.at, 1.0, wrong).solve(direction(q))


def test_block_tridiagonal_is_prepared_in_double_precision(monkeypatch):
    model = kr.Model(kr.MLP((64, 32, 16, 8, 16, 32, 64), ("logistic", "logistic", "identity", "logistic", "logistic")),
                     kr.Bernoulli())
    x = kr.datasets.digits(np.float32).x
    at = model.at(model.init(np.random.default_rng(0), dtype=np.float32), x)
    factors, grad = kr.kronecker_factors(at, reach=1), at.gradient(x)
    single, double = (BlockTridiagonal(f, damping=1e-6) for f in (factors, factors.astype(np.float64)))
    solved, exactly = single.solve(grad), double.solve([v.astype(np.float64) for v in grad])
    assert {u.dtype for u in solved} == {np.dtype(np.float32)}
    # The factors themselves have seven digits, of which the difference Sigma loses some four.
    assert max(relative(u, v) for u, v in zip(solved, exactly, strict=True)) < 1e-2
    # Prepared in float32, what is left of Sigma cannot be told from rounding.
    monkeypatch.setattr(BlockTridiagonal, "_double", property(lambda self: self))
    with pytest.raises(np.linalg.LinAlgError, match=r"Sigma of layer 0 .* is singular to rounding"):
        BlockTridiagonal(factors, damping=1e-6).solve(grad)
