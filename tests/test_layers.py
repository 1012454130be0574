"""Every contraction of g with a_bar, against the gradients D of single examples, written out in loops.

With and without axes of positions, with one column and several, and with D formed for a few examples at a time.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kfac_ref import kronecker, layers
from kfac_ref.checks import Array
from tests.problems import close, relative

N, K = 6, 3
#: The axes of positions between examples and features.
POSITIONS = {"no positions": (), "one axis": (4,), "two axes": (2, 3), "one position": (1,)}
SIZES = {"first": (3, 5), "second": (4, 2)}                            # m and n of two layers


@pytest.fixture(params=POSITIONS.values(), ids=POSITIONS)
def T(request: pytest.FixtureRequest) -> tuple[int, ...]:
    positions: tuple[int, ...] = request.param
    return positions


@pytest.fixture(params=[1, K], ids=["one column", "three columns"])
def columns(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


def layer(name: str, T: tuple[int, ...], columns: int, dtype: type = np.float64) -> tuple[Array, Array]:
    """Return g (K, N, *T, m) and a_bar (N, *T, n)."""
    rng = np.random.default_rng(len(name))
    m, n = SIZES[name]
    return (rng.standard_normal((columns, N, *T, m)).astype(dtype), rng.standard_normal((N, *T, n)).astype(dtype))


def by_loop(g: Array, a_bar: Array) -> Array:
    """Return D of every column and example: the sum of outer products over the positions, one after another."""
    D = np.zeros((len(g), N, g.shape[-1], a_bar.shape[-1]))
    for k, n in itertools.product(range(len(g)), range(N)):
        for t in np.ndindex(a_bar.shape[1:-1]):
            D[k, n] += np.outer(g[(k, n, *t)], a_bar[(n, *t)])
    return D


def test_second_moment_is_a_sum_of_outer_products(T: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((N, *T, 2)), rng.standard_normal((N, *T, 3))
    close(layers.second_moment(u, v), sum(np.outer(u[i], v[i]) for i in np.ndindex(N, *T)), 1e-14)


def test_example_gradients(T: tuple[int, ...], columns: int) -> None:
    g, a_bar = layer("first", T, columns)
    close(layers.example_gradients(g, a_bar), by_loop(g, a_bar), 1e-14)


def test_example_slopes(T: tuple[int, ...], columns: int) -> None:
    g, a_bar = layer("first", T, columns)
    V = np.random.default_rng(1).standard_normal(SIZES["first"])
    expected = [[np.sum(d * V) for d in D] for D in by_loop(g, a_bar)]
    close(layers.example_slopes(g, a_bar, V), expected, 1e-14)


def test_adjoint(T: tuple[int, ...]) -> None:
    g, a_bar = layer("first", T, 1)
    close(layers.adjoint(g[0], a_bar), by_loop(g, a_bar)[0].sum(axis=0), 1e-14)


def test_slopes_and_adjoint_are_adjoints_of_each_other(T: tuple[int, ...]) -> None:
    g, a_bar = layer("first", T, 1)
    V = np.random.default_rng(1).standard_normal(SIZES["first"])
    close(layers.example_slopes(g, a_bar, V).sum(), np.sum(layers.adjoint(g[0], a_bar) * V), 1e-13)


def test_side_moments(T: tuple[int, ...], columns: int) -> None:
    g, a_bar = layer("first", T, columns)
    R, L = layers.side_moments(g, a_bar)
    D = by_loop(g, a_bar).reshape(-1, *SIZES["first"])
    close(R, sum(d.T @ d for d in D), 1e-14)
    close(L, sum(d @ d.T for d in D), 1e-14)
    close(np.trace(R), np.trace(L), 1e-13)


@pytest.mark.parametrize("rotated", ["neither", "G", "A", "both"])
def test_rotated_squares(T: tuple[int, ...], columns: int, rotated: str) -> None:
    g, a_bar = layer("first", T, columns)
    rng = np.random.default_rng(2)
    Q_G, Q_A = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in SIZES["first"])     # of 2 x 2, Q is symmetric
    Q_G, Q_A = Q_G if rotated in ("G", "both") else None, Q_A if rotated in ("A", "both") else None
    left, right = (np.eye(n) if Q is None else Q for n, Q in zip(SIZES["first"], (Q_G, Q_A), strict=True))
    expected = sum((left.T @ d @ right) ** 2 for d in by_loop(g, a_bar).reshape(-1, *SIZES["first"]))
    close(layers.rotated_squares(g, a_bar, Q_G, Q_A), expected, 1e-13)


def test_example_gram(T: tuple[int, ...], columns: int) -> None:
    g, a_bar = layer("first", T, columns)
    D = by_loop(g, a_bar).reshape(columns * N, -1)
    close(layers.example_gram(g, a_bar), [[d @ e for e in D] for d in D], 1e-13)


def test_rearranged_is_the_block_of_two_layers(T: tuple[int, ...], columns: int) -> None:
    for i, j in itertools.product(SIZES, SIZES):
        (g_i, a_i), (g_j, a_j) = layer(i, T, columns), layer(j, T, columns)
        pairs = zip(by_loop(g_i, a_i).reshape(-1, *SIZES[i]), by_loop(g_j, a_j).reshape(-1, *SIZES[j]), strict=True)
        block = sum(np.outer(kronecker.vec(d), kronecker.vec(e)) for d, e in pairs)
        close(layers.rearranged(g_i, a_i, g_j, a_j).reshape(block.shape), block, 1e-13)


def test_a_layer_with_positions_and_one_without_have_a_block_too() -> None:
    (g_i, a_i), (g_j, a_j) = layer("first", (4,), K), layer("second", (), K)
    pairs = zip(by_loop(g_i, a_i).reshape(-1, *SIZES["first"]), by_loop(g_j, a_j).reshape(-1, *SIZES["second"]),
                strict=True)
    block = sum(np.outer(kronecker.vec(d), kronecker.vec(e)) for d, e in pairs)
    close(layers.rearranged(g_i, a_i, g_j, a_j).reshape(block.shape), block, 1e-13)
    close(layers.rearranged(g_j, a_j, g_i, a_i).reshape(block.T.shape), block.T, 1e-13)


#: All that D is formed for, or that is cut for other reasons.
IN_CHUNKS = {
    "side_moments": lambda g, a, h, b: np.concatenate([M.ravel() for M in layers.side_moments(g, a)]),
    "rotated_squares": lambda g, a, h, b: layers.rotated_squares(g, a),
    "rearranged": layers.rearranged,
}


@pytest.mark.parametrize("name", IN_CHUNKS)
@pytest.mark.parametrize("examples", [1, 4])
def test_chunks_of_examples_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch, name: str,
                                                                examples: int, T: tuple[int, ...],
                                                                columns: int) -> None:
    arguments = (*layer("first", T, columns), *layer("second", T, columns))
    whole = IN_CHUNKS[name](*arguments)
    cut = []
    chunks = layers._chunks

    def counted(*these: int) -> list[slice]:
        found = list(chunks(*these))
        cut.append(len(found))
        return found

    monkeypatch.setattr(layers, "_chunks", counted)
    (m, n), (p, q) = SIZES.values()
    per_example = {"rearranged": columns * (m * n + p * q) if T else n * q + m * p}.get(name, columns * m * n)
    monkeypatch.setattr(layers, "CHUNK_BYTES", examples * per_example * 8)
    close(IN_CHUNKS[name](*arguments), whole, 1e-13)
    if T or name == "rearranged":
        assert set(cut) == {-(-N // examples)}
    else:
        assert cut == []                                    # without positions there is no D


def test_a_chunk_holds_at_least_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    g, a_bar = layer("first", (4,), K)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 1)
    close(layers.rotated_squares(g, a_bar), np.square(by_loop(g, a_bar)).sum(axis=(0, 1)), 1e-13)


def test_positions_are_summed_before_anything_is_squared() -> None:
    g, a_bar = layer("first", (4,), K)
    flat = g.reshape(K, N * 4, -1), a_bar.reshape(N * 4, -1)            # every position an example of its own
    for contract in (layers.rotated_squares, lambda g, a: layers.side_moments(g, a)[0],
                     lambda g, a: layers.rearranged(g, a, g, a)):
        assert relative(contract(*flat), contract(g, a_bar)) > 0.1


@pytest.mark.parametrize("contract", [layers.example_gradients, layers.rotated_squares, layers.example_gram,
                                      lambda g, a: layers.side_moments(g, a)[0], lambda g, a: layers.adjoint(g[0], a),
                                      lambda g, a: layers.side_moments(g, a)[1],
                                      lambda g, a: layers.rearranged(g, a, g, a),
                                      lambda g, a: layers.example_slopes(g, a, np.ones(SIZES["first"], g.dtype))])
def test_float32_stays_float32(contract: object, T: tuple[int, ...]) -> None:
    single, double = (contract(*layer("first", T, K, dtype)) for dtype in (np.float32, np.float64))  # type: ignore[operator]
    assert single.dtype == np.float32
    close(single, double, 1e-5)                             # float32 has 7 digits, and a few roundings follow


def test_nothing_that_is_passed_in_changes(T: tuple[int, ...]) -> None:
    g, a_bar = layer("first", T, K)
    before = g.copy(), a_bar.copy()
    layers.side_moments(g, a_bar)
    layers.rearranged(g, a_bar, g, a_bar)
    layers.rotated_squares(g, a_bar, np.eye(3), np.eye(5))
    layers.example_gram(g, a_bar)
    for one, other in zip((g, a_bar), before, strict=True):
        np.testing.assert_array_equal(one, other)
