# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Answers to tutorial 7
#
# The questions stand at the end of [tutorial 7](../07_inverting.py). Try them first.
#
# Network, factors and damping are the tutorial's.

# %%
import numpy as np
import scipy.linalg

import kfac_ref as kr
from kfac_ref.experiments import middle_layers

data, sizes = kr.datasets.digits(), (64, 8, 8, 8, 8, 8, 10)
model = kr.Model(kr.MLP(sizes, "tanh"), kr.Categorical())
at = model.at(middle_layers.trained(model, data, "sparse", steps=(7,))[7], data.x)
undamped, gamma, L = middle_layers.middle_factors(at), 0.01, 4
f, grad = middle_layers.damped(undamped, gamma), at.gradient(data.labels)[1:-1]
F, g = kr.curvature.Full(f).dense(), kr.params.flatten(grad)    # F̃

# %% [markdown]
# ## 1. Two layers
#
# F̂ has the tridiagonal blocks of F̃, and with two layers there are no others. Nothing was assumed either: that
# layer 0 is explained by the next layer *alone* says something only if there is a third. What is left is to eliminate
# a block: with Psi_0 = F̃_01 F̃_11^-1 the matrix Xi F̃ Xi^T is block diagonal, of Sigma_0 = F̃_00 - Psi_0 F̃_10 and
# F̃_11. That is Lambda^-1, which is also Xi F̂ Xi^T; Xi can be inverted, so F̃ = F̂. It holds for any symmetric
# matrix whose block of layer 1 can be inverted: factors of random numbers, of no network, show it too.

# %%
def off(factors):
    hat = kr.curvature.BlockTridiagonal(factors, gamma**2).dense()
    full = kr.curvature.Full(middle_layers.damped(factors, gamma)).dense()
    return np.linalg.norm(hat - full) / np.linalg.norm(full)


rng = np.random.default_rng(0)
A, G = ([X @ X.T for X in (rng.standard_normal((n, 2 * n)) for n in ns)] for ns in ((3, 4), (2, 3)))
random = kr.Factors({(0, 0): A[0], (1, 1): A[1], (0, 1): rng.standard_normal((3, 4))},
                    {(0, 0): G[0], (1, 1): G[1], (0, 1): rng.standard_normal((2, 3))}, n=1)
two, three = (middle_layers.restrict(undamped, range(n)) for n in (2, 3))
print(f"with two layers F̂ = F̃ to rounding, with three it is off by {off(three):.2f}")
assert max(off(random), off(two)) < 1e-10
assert off(three) > 1e-3

# %% [markdown]
# ## 2. The sweeps in place
#
# Both sweeps want the *unchanged* neighbour. The first changes V_i and reads V_(i+1): i runs up, so that i + 1 is
# changed after it was read. The third changes U_(i+1) and reads U_i: i runs down. In the other order a layer reads what
# its neighbour has become. With the first sweep in the wrong order the step loses what the chain gains over F̆;
# with the third in the wrong order it loses less. The quadratic model still falls in both cases. Two tests would not
# notice: with two layers there is one i and no order, and at gamma = 1 the Psi are so small that the step is off by
# less than 3%.

# %%
def sweeps(gamma, first, third):
    f = middle_layers.damped(undamped, gamma)
    PsiA, PsiG = ([X[i, i + 1] @ np.linalg.inv(X[i + 1]) for i in range(L - 1)] for X in (f.A, f.G))
    U = [V.copy() for V in grad]
    for i in first:
        U[i] -= PsiG[i] @ U[i + 1] @ PsiA[i].T
    for i in range(L):
        S = np.kron(f.A[i], f.G[i])
        if i < L - 1:
            S -= np.kron(PsiA[i] @ f.A[i + 1, i], PsiG[i] @ f.G[i + 1, i])
        U[i] = kr.kronecker.unvec(np.linalg.solve(S, kr.kronecker.vec(U[i])), *U[i].shape)
    for i in third:
        U[i + 1] -= PsiG[i].T @ U[i] @ PsiA[i]
    return kr.params.flatten(U)


def decrease(d):
    """Return by how much the best multiple of d lowers the quadratic model, as a share of what the right step does."""
    return (g @ d)**2 / (d @ C @ d) / (g @ right)**2 * (right @ C @ right)


up, down = range(L - 1), range(L - 2, -1, -1)
C = F + middle_layers.middle_fisher(at) - kr.curvature.Full(undamped).dense()       # the exact F, damped as F̃ is
right, weak = sweeps(gamma, up, down), sweeps(1.0, up, down)
assert np.allclose(right, kr.params.flatten(kr.curvature.BlockTridiagonal(undamped, gamma**2).solve(grad)), rtol=1e-6)
shares = {"F̆": decrease(kr.params.flatten(kr.curvature.BlockDiagonal(undamped, gamma**2).solve(grad)))}
print(f"F̆: decrease {shares['F̆']:.0%} of that of F̂")
for name, first, third in (("first wrong", down, down), ("third wrong", up, up), ("both wrong", down, up)):
    wrong = sweeps(gamma, first, third)
    change = np.linalg.norm(wrong - right) / np.linalg.norm(right)
    shares[name] = decrease(wrong)
    print(f"{name}: off by {change:.0%}, decrease {shares[name]:.0%}")
    assert 0.03 < change < 1
    assert np.linalg.norm(sweeps(1.0, first, third) - weak) < 0.03 * np.linalg.norm(weak)
assert 0.5 < max(shares["F̆"], shares["first wrong"], shares["both wrong"]) < 0.9 < shares["third wrong"]

# %% [markdown]
# ## 3. Where Sigma is nearly singular
#
# Take a combination u^T a_i of the inputs. Its mean square is u^T A u, and u^T E^A u is the part of it that a
# regression on a_(i+1) explains. As K_1 makes both matrices diagonal, s1 are such shares, between 0 and 1, and the
# largest s1 is the largest share that any u has. (Statistics calls them squared canonical correlations.) The appended 1
# is in both, and explains itself: undamped, the largest s1 is 1. Damping adds to A_ii and not to A_i,i+1, as a noise
# would: the largest s fall. s2 says the same of g_i and g_(i+1); the slopes of tanh, which differ from example to
# example, keep it below 1. Without tanh g_i = W^T g_(i+1), with the weights W of layer i + 1 (no bias column). Then
# g_(i+1) explains all of g_i: E^G = G_i, and **all** s2 are 1. So 1 - s1 s2 is zero where s1 is 1, in the direction of
# the biases: undamped Sigma is singular, and F̂ has no inverse. Here it is worse still. W is square and can be
# inverted, so a_(i+1) determines a_i, all s1 are 1 too, and Sigma = 0.

# %%
def s(f, i=0):
    """Return s1 and s2 of layer i, ascending."""
    return [scipy.linalg.eigh(X[i, i + 1] @ np.linalg.solve(X[i + 1], X[i + 1, i]), X[i])[0] for X in (f.A, f.G)]


largest = []
for level in (1, 0.1, 0.01, 0.001, 0):
    largest.append([v[-1] for v in s(middle_layers.damped(undamped, level))])
    print(f"gamma = {level:5}: largest s1 {largest[-1][0]:.4f}, largest s2 {largest[-1][1]:.4f}")
assert np.all(np.diff(largest, axis=0) > 0)
assert np.isclose(largest[-1][0], 1, rtol=0, atol=1e-9)
assert 0.9 < largest[-1][1] < 0.99
linear = kr.Model(kr.MLP(sizes, "identity"), kr.Categorical())
without = middle_layers.middle_factors(linear.at(linear.init(np.random.default_rng(1), "glorot"), data.x[:300]))
s1, s2 = s(without)
print(f"without tanh: least s1 {s1[0]:.4f}, least s2 {s2[0]:.4f}, so 1 - s1 s2 = 0 throughout")
assert np.allclose(np.concatenate([s1, s2]), 1, rtol=0, atol=1e-4)

# %% [markdown]
# ## 4. The chain turned around
#
# No. "Layers i - 1 and i + 1 are uncorrelated given layer i" names no direction, and it fixes all the far blocks of
# F̂: block (i - 1, i + 1) is F̃_(i-1,i) F̃_ii^-1 F̃_(i,i+1), and so on outwards, from the blocks that F̂ shares
# with F̃. There is one matrix that has these blocks and a block-tridiagonal inverse. Psi and Sigma do become others:
# now the first layer is the one of which nothing is subtracted.

# %%
pairs = [(i, i) for i in range(L)] + [(i, i + 1) for i in range(L - 1)]
turned = kr.Factors(*({(i, j): X[L - 1 - i, L - 1 - j] for i, j in pairs} for X in (f.A, f.G)), f.n)
backwards = np.concatenate([np.arange(72 * i, 72 * i + 72) for i in (3, 2, 1, 0)])
hat = kr.curvature.BlockTridiagonal(f).dense()
difference = kr.curvature.BlockTridiagonal(turned).dense()[np.ix_(backwards, backwards)] - hat
print("the chain turned around: F̂ is the same to rounding")
assert np.linalg.norm(difference) < 1e-10 * np.linalg.norm(hat)
zero, one, two = (slice(72 * i, 72 * i + 72) for i in range(3))
assert np.allclose(hat[zero, two], F[zero, one] @ np.linalg.solve(F[one, one], F[one, two]), rtol=0, atol=1e-8)
