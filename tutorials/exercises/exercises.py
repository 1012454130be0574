"""The exercises of the course: questions, hints and solutions.

Each function is an exercise. Its docstring is the question, with the points in the first line and the hints at the end;
its body is the solution, in plain NumPy. `new.py` writes the student's file from this one: the same functions without
hints and bodies. This file is also a file of right answers: `check.py exercises.py`.

Conventions: examples are rows; the bias is the last column of the weights; vec stacks columns.
"""

import numpy as np

# %% 1. vec and Kronecker


def vec(V):
    """Stack the columns of a matrix. (1 point)

    V : (m, n) array
    Return an (m n,) array: the first column, then the second, and so on.

    Hints:
    1. NumPy's ravel() stacks the rows.
    2. The columns of V are the rows of its transpose.
    """
    return V.T.ravel()


def unvec(v, m, n):
    """Undo vec. (1 point)

    v : (m n,) array; m, n : int
    Return the (m, n) matrix whose stacked columns are v.

    Hints:
    1. reshape fills rows. Which matrix has the columns of the answer as its rows?
    2. There are n columns of m entries each.
    """
    return v.reshape(n, m).T


def kron_times(A, G, V):
    """Multiply (A ⊗ G) with vec(V), without forming the Kronecker product. (1 point)

    A : (n, n) array, G : (m, m) array, neither symmetric; V : (m, n) array
    Return the product as a matrix: the (m, n) array X with vec(X) = (A ⊗ G) vec(V). One of the tests is so large
    that the Kronecker product does not fit into memory.

    Hints:
    1. A belongs to the columns of V, G to its rows.
    2. Try it with G = I: then each row of V is mapped on its own. By A or by its transpose?
    """
    return G @ V @ A.T


# %% 2. A network by hand


def output_gradient(z, y):
    """Differentiate the cross-entropy of a softmax with respect to the logits. (1 point)

    z : (N, C) array, logits; y : (N,) array of int, labels 0..C-1
    Return an (N, C) array: for each example the gradient of its own -log p(y | z). Logits may be as large as 1000.

    Hints:
    1. The gradient is the probabilities minus something that only the label decides.
    2. exp(1000) overflows. The probabilities do not change if the same number is subtracted from all logits of a row.
    """
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p - np.eye(z.shape[1])[y]


def backward(weights, a_bar, dz):
    """Send gradients back through a tanh network with a linear output layer. (2 points)

    weights : list of L arrays, weights[i] (d_{i+1}, d_i + 1), the bias in the last column
    a_bar : list of L arrays, a_bar[i] (N, d_i + 1): the input of layer i, with the 1 in the last column
    dz : (N, d_L) array, the gradient of each example's loss with respect to the output z = s_{L-1}
    Return a list of L arrays g, g[i] (N, d_{i+1}): the gradient of each example's loss with respect to s_i, where
    s_i = a_bar[i] W_i^T and a_bar[i+1] = [tanh(s_i), 1].

    Hints:
    1. g[L-1] is dz. From g[i] to g[i-1]: through the weights of layer i, then through the tanh before it.
    2. tanh' = 1 - tanh^2, and tanh(s_{i-1}) is in a_bar[i] already.
    3. Nothing goes back through the bias: leave its column out.
    """
    g = [dz]
    for i in range(len(weights) - 1, 0, -1):
        g.insert(0, (g[0] @ weights[i][:, :-1]) * (1 - a_bar[i][:, :-1]**2))
    return g


def gradient(g, a_bar, W, eta):
    """Compute the gradient of the objective with respect to one layer's weights. (1 point)

    g : (N, m) array, gradients of each example's loss with respect to the layer's s
    a_bar : (N, n) array, the layer's inputs with the 1; W : (m, n) array, its weights; eta : float, the weight decay
    Return the (m, n) array of derivatives of h = (mean loss over the N examples) + (eta/2) ||theta||^2.

    Hints:
    1. For one example the gradient is the outer product of g and a_bar. The mean of outer products is a matrix product.
    2. In the paper eta acts on all parameters alike.
    """
    return g.T @ a_bar / len(g) + eta * W


def tangent(weights, a_bar, V):
    """Differentiate the output of a tanh network along a direction: the R-operator. (2 points)

    weights, a_bar : as for backward
    V : list of L arrays shaped like the weights, the direction
    Return dz, an (N, d_L) array: the derivative of z(weights + t V) at t = 0.

    Hints:
    1. s_i = a_bar[i] W_i^T is a product, and both factors change. The input x does not change.
    2. From layer to layer, pass on the derivative Ra of the activations (without the 1, which is constant).
    3. Rs = a_bar[i] V_i^T + (something with Ra and W_i), then Ra = tanh'(s) Rs.
    """
    Ra = np.zeros_like(a_bar[0][:, :-1])
    for i, (W, v, a) in enumerate(zip(weights, V, a_bar, strict=True)):
        Rs = a @ v.T + Ra @ W[:, :-1].T
        if i + 1 < len(weights):
            Ra = (1 - a_bar[i + 1][:, :-1]**2) * Rs
    return Rs


# %% 3. Hessian, Gauss-Newton, Fisher


def gauss_newton(J, F_R):
    """Form the Gauss-Newton matrix, which is the exact Fisher here. (1 point)

    J : (N, C, P) array, J[n] the Jacobian of the output of example n with respect to theta
    F_R : (N, C, C) array, F_R[n] the Fisher of the output distribution of example n
    Return the (P, P) array F = (1/N) sum_n J[n]^T F_R[n] J[n].

    Hints:
    1. @ multiplies stacks of matrices. np.einsum does it too.
    2. The Fisher is a mean over the examples.
    """
    return np.einsum("ncp,ncd,ndq->pq", J, F_R, J) / len(J)


def fisher_product(g, a_bar, V):
    """Multiply the exact Fisher with a direction, without forming it. (3 points)

    g : list of L arrays, g[i] (K, N, m_i): what comes back to layer i from the K columns of a root of F_R
        (tutorial 4), so that F = (1/N) sum_k sum_n of (gradient of k, n) (gradient of k, n)^T, all layers in one vector
    a_bar : list of L arrays (N, n_i); V : list of L arrays (m_i, n_i)
    Return F V as a list of L arrays (m_i, n_i).

    Hints:
    1. First the inner product of each of the K N gradients with the whole direction; it is a sum over the layers.
    2. In one layer it is g^T V a_bar. np.einsum("knm,mj,nj->kn", ...) gives it for all k and n.
    3. Then each layer gets the mean of its gradients g a_bar^T weighted with these numbers.
    """
    slopes = sum(np.einsum("knm,mj,nj->kn", gi, v, a) for gi, v, a in zip(g, V, a_bar, strict=True))
    return [np.einsum("kn,knm,nj->mj", slopes, gi, a) / len(a) for gi, a in zip(g, a_bar, strict=True)]


# %% 4. Which expectation?


def categorical_columns(z):
    """Write the columns of a root of F_R for the softmax. (2 points)

    z : (N, C) array, logits
    Return a (K, N, C) array b with sum_k b[k, n] b[k, n]^T = F_R of example n = diag(p) - p p^T. K is yours to choose.

    Hints:
    1. Column k of diag(sqrt p) - p sqrt(p)^T is sqrt(p_k) (e_k - p).
    2. Another way to see it: class k has the probability p_k, and sends back its gradient.
    3. The first index of the result is k: do not confuse the column with the entry.
    """
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.sqrt(p).T[:, :, None] * (np.eye(z.shape[1])[:, None, :] - p)


def bernoulli_columns(z):
    """Write the columns of a root of F_R for independent bits. (1 point)

    z : (N, C) array, logits of C bits
    Return a (K, N, C) array b with sum_k b[k, n] b[k, n]^T = F_R of example n. K is yours to choose.

    Hints:
    1. Bit c has the variance p_c (1 - p_c), and the bits are independent.
    2. So F_R is diagonal. What is its root, and what are the columns of that?
    """
    p = 1 / (1 + np.exp(-z))
    return np.sqrt(p * (1 - p)) * np.eye(z.shape[1])[:, None, :]


def exact_G(g):
    """Compute the exact factor G of a layer. (1 point)

    g : (K, N, m) array: what comes back to the layer from the K columns of a root of F_R, for each of N examples
    Return the (m, m) array G = E[g g^T], mean over the examples, exact over the model's prediction.

    Hints:
    1. The outer products of the columns of a root ADD UP to F_R.
    2. reshape(-1, m) makes the stack one tall matrix.
    """
    _, N, m = g.shape
    return g.reshape(-1, m).T @ g.reshape(-1, m) / N


def enumerated_G(z):
    """Compute the exact G of the output layer by enumerating the classes. (2 points)

    z : (N, C) array, logits of a softmax
    Return the (C, C) array G: the mean over the examples of E[g g^T], where g is the gradient of -log p(y | z) and y is
    distributed as the model predicts.

    Hints:
    1. E over y is a sum over the C classes, each weighted with its probability. The labels of the data are not used.
    2. The gradient for class c is p - e_c.
    """
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = [p - e for e in np.eye(z.shape[1])]
    return sum((p[:, c, None] * g[c]).T @ g[c] for c in range(z.shape[1])) / len(z)


def sampled_G(g):
    """Compute the factor G of a layer from sampled targets. (1 point)

    g : (M, N, m) array: what comes back to the layer from M targets drawn from the model, for each of N examples
    Return the (m, m) array, the estimate of E[g g^T].

    Hints:
    1. Columns of a root are summed. Are samples?
    """
    M, N, m = g.shape
    return g.reshape(-1, m).T @ g.reshape(-1, m) / (M * N)


def empirical_fisher(g, a_bar):
    """Form the empirical Fisher. (2 points)

    g : list of L arrays (N, m_i), gradients at the labels; a_bar : list of L arrays (N, n_i)
    Return the (P, P) array (1/N) sum_n d_n d_n^T, where d_n is the gradient of the loss of example n in all weights:
    vec (columns stacked) of layer 0, then of layer 1, and so on.

    Hints:
    1. In one layer d_n is vec(g_n a_bar_n^T) = a_bar_n ⊗ g_n: the index of a_bar is the slow one.
    2. Build the (N, P) matrix of all d_n. The rest is one product.
    """
    rows = np.hstack([(a[:, :, None] * gi[:, None, :]).reshape(len(a), -1) for gi, a in zip(g, a_bar, strict=True)])
    return rows.T @ rows / len(rows)


# %% 5. The natural gradient


def natural_gradient(F, grad, damping):
    """Compute the natural gradient step with the whole Fisher. (2 points)

    F : (P, P) array, for theta = vec of layer 0, then of layer 1, and so on (columns stacked)
    grad : list of L arrays (m_i, n_i); damping : float, added to the diagonal of F
    Return the step Delta = -(F + damping I)^-1 grad, as a list of L arrays (m_i, n_i).

    Hints:
    1. Flatten the list in the order of F, solve, and take the vector apart again.
    2. The minus sign is part of the step.
    """
    v = np.concatenate([V.T.ravel() for V in grad])
    x = -np.linalg.solve(F + damping * np.eye(len(F)), v)
    ends = np.cumsum([V.size for V in grad])
    return [part.reshape(V.T.shape).T for part, V in zip(np.split(x, ends[:-1]), grad, strict=True)]


def transformed_gradient(grad, Phi, Omega):
    """Transform a gradient to other parameters. (2 points)

    grad : (m, n) array, the gradient of h with respect to W
    Phi : (m, m) array, Omega : (n, n) array, invertible and fixed
    The same function in other parameters W' has W = Phi W' Omega. Return the (m, n) gradient of h with respect to W'.

    Hints:
    1. h changes by <grad, dW> = <grad, Phi dW' Omega>. Write this as <something, dW'>.
    2. <X, Y> = tr(X^T Y), and a trace does not change under cyclic permutation.
    """
    return Phi.T @ grad @ Omega.T


def kl_clip(step, grad, learning_rate, kappa):
    """Scale a natural-gradient step so that the prediction does not change too much. (2 points)

    step : list of L arrays, v = -F^-1 grad; grad : list of L arrays; learning_rate, kappa : float
    The parameters will change by learning_rate nu v. To second order, twice the KL divergence between the predictions
    before and after is the square length of that change in the metric F; with v = -F^-1 grad it needs no F.
    Return nu: 1 where twice the KL divergence is at most kappa, else the number below 1 that makes it kappa. (Later
    libraries do this instead of the paper's alpha. No tutorial covers it; everything you need is here.)

    Hints:
    1. v^T F v = |v^T grad|.
    2. The change contains the learning rate and nu, so both are squared in its square length.
    """
    s = abs(sum(np.sum(v * g) for v, g in zip(step, grad, strict=True)))
    return min(1.0, np.sqrt(kappa / (learning_rate**2 * s)))


# %% 6. From the Fisher to A and G


def factor_A(a):
    """Compute the factor A of a layer, including the bias. (1 point)

    a : (N, d) array, the inputs of the layer, WITHOUT the 1 for the bias
    Return the (d + 1, d + 1) array A = E[a_bar a_bar^T], the bias last.

    Hints:
    1. The bias is a weight whose input is always 1: append a column of ones.
    2. It is a plain second moment: a mean over N, and no mean is subtracted.
    """
    a_bar = np.column_stack([a, np.ones(len(a))])
    return a_bar.T @ a_bar / len(a)


def covariance_error(g, a_bar):
    """Compute the error of the Kronecker approximation as a covariance. (3 points)

    g : (K, N, m) array, what comes back from the columns of a root of F_R; a_bar : (N, n) array, the inputs
    With Gamma_n = sum_k g_kn g_kn^T and Alpha_n = a_bar_n a_bar_n^T, return the (m^2, n^2) array
    Cov(vec Gamma, vec Alpha) over the N examples, (1/N) times the sum. It is the rearranged F_ii - A ⊗ G.

    Hints:
    1. Make an (N, m^2) array of the vec Gamma_n and an (N, n^2) array of the vec Alpha_n.
    2. Subtract from each its mean over the examples. The rest is one matrix product.
    """
    Gamma = np.einsum("kni,knj->nij", g, g).reshape(len(a_bar), -1)
    Alpha = np.einsum("ni,nj->nij", a_bar, a_bar).reshape(len(a_bar), -1)
    return (Gamma - Gamma.mean(axis=0)).T @ (Alpha - Alpha.mean(axis=0)) / len(a_bar)


# %% 7. Inverting


def kfac_step(A, G, grad):
    """Take the step of K-FAC in one layer. (1 point)

    A : (n, n) array, G : (m, m) array, symmetric, positive definite, already damped; grad : (m, n) array
    Return the (m, n) array Delta with vec(Delta) = -(A ⊗ G)^-1 vec(grad).

    Hints:
    1. (A ⊗ G)^-1 = A^-1 ⊗ G^-1.
    2. np.linalg.solve divides from the left. To divide from the right, transpose, solve, transpose.
    """
    return -np.linalg.solve(A, np.linalg.solve(G, grad).T).T


def kron_sum_solve(A, B, C, D, V):
    """Solve with a sum of two Kronecker products, without forming them (the paper's Appendix B). (3 points)

    A, B : (n, n) and (m, m) arrays, symmetric positive definite; C, D : (n, n) and (m, m), symmetric, positive
    semi-definite; V : (m, n) array
    Return the (m, n) array X with (A ⊗ B + C ⊗ D) vec(X) = vec(V).

    Hints:
    1. Find K1 with K1^T A K1 = I and K1^T C K1 = diag(s1), and K2 likewise for B and D.
    2. Such a K1 is L^-T E, with A = L L^T and E the eigenvectors of L^-1 C L^-T.
    3. In these coordinates the sum is diagonal: 1 + s2_j s1_i. Transform V, divide, transform back. (Tutorial 7 has a
       difference, so 1 - s2_j s1_i.)
    """
    def both(M, S):
        L = np.linalg.cholesky(M)
        s, E = np.linalg.eigh(np.linalg.solve(L, np.linalg.solve(L, S).T))
        return s, np.linalg.solve(L.T, E)
    (s1, K1), (s2, K2) = both(A, C), both(B, D)
    return K2 @ ((K2.T @ V @ K1) / (1 + np.outer(s2, s1))) @ K1.T


def regression(S_cross, S_next):
    """Predict a layer from the next one: Psi of the block-tridiagonal approximation. (1 point)

    S_cross : (d_i, d_{i+1}) array, E[u_i u_{i+1}^T]; S_next : (d_{i+1}, d_{i+1}) array, E[u_{i+1} u_{i+1}^T]
    Return the (d_i, d_{i+1}) array Psi for which Psi u_{i+1} is the best linear prediction of u_i.

    Hints:
    1. Least squares: E[(u_i - Psi u_{i+1}) u_{i+1}^T] = 0.
    2. So Psi times S_next is S_cross, and the division is from the right. S_next is symmetric.
    """
    return np.linalg.solve(S_next, S_cross.T).T


def tridiagonal_solve(V, Psi_A, Psi_G, Sigma):
    """Multiply with the inverse of F̂, the block-tridiagonal approximation, in three sweeps. (3 points)

    V : list of L arrays (m_i, n_i)
    Psi_A, Psi_G : lists of L - 1 arrays (n_i, n_{i+1}) and (m_i, m_{i+1}); Psi_i = Psi_A[i] ⊗ Psi_G[i]
    Sigma : list of L arrays (m_i n_i, m_i n_i)
    F̂^-1 = Xi^T blockdiag(Sigma^-1) Xi, where Xi is the identity with -Psi_i in block (i, i + 1).
    Return F̂^-1 V as a list of L arrays (m_i, n_i).

    Hints:
    1. From the right: first Xi, then each Sigma^-1 by itself, then Xi^T.
    2. (Psi_A ⊗ Psi_G) vec(V) = vec(Psi_G V Psi_A^T). The first sweep takes V_{i+1} as it came.
    3. In Xi^T the block -Psi_i^T is at (i + 1, i): layer i + 1 uses the result of the second sweep for layer i.
    """
    pairs = list(zip(Psi_A, Psi_G, strict=True))
    U = [V[i] - pairs[i][1] @ V[i + 1] @ pairs[i][0].T for i in range(len(pairs))] + [V[-1]]
    U = [np.linalg.solve(S, u.T.ravel()).reshape(u.T.shape).T for S, u in zip(Sigma, U, strict=True)]
    return [U[0]] + [U[i + 1] - pairs[i][1].T @ U[i] @ pairs[i][0] for i in range(len(pairs))]


# %% 8. Damping


def trace_pi(A, G):
    """Compute pi, which shares the damping between the two factors. (1 point)

    A : (n, n) array, G : (m, m) array
    Return the number pi, by the trace norm of the paper's section 6.3.

    Hints:
    1. pi^2 is the ratio of the mean eigenvalue of A to that of G.
    2. The mean eigenvalue of a matrix is its trace over its dimension.
    """
    return np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))


def damped_factors(A, G, damping, pi):
    """Damp the two factors of a layer (factored Tikhonov, the paper's section 6.3). (1 point)

    A : (n, n) array, G : (m, m) array; damping : float, lambda + eta; pi : float
    Return the pair (A_damped, G_damped): their Kronecker product is A ⊗ G + damping I plus two more terms.
    A and G themselves must not change.

    Hints:
    1. Each factor gets a share of sqrt(damping), so that the product of the two shares is the damping.
    2. pi makes the share of A larger and that of G smaller.
    """
    root = np.sqrt(damping)
    return A + pi * root * np.eye(len(A)), G + root / pi * np.eye(len(G))


def eigen_damped_step(A, G, damping, grad):
    """Take the step of one layer with exact damping. (2 points)

    A : (n, n) array, G : (m, m) array, symmetric, undamped; damping : float; grad : (m, n) array
    Return the (m, n) array Delta with vec(Delta) = -(A ⊗ G + damping I)^-1 vec(grad). Do not form the product.

    Hints:
    1. The eigenvectors of A ⊗ G are Kronecker products of those of A and G, its eigenvalues the products of theirs.
    2. The identity is the identity in every orthonormal basis. So: into the eigenbasis, divide, and back.
    3. Into the eigenbasis: Q_G^T V Q_A, where entry (j, i) belongs to the eigenvalue j of G and i of A.
    """
    a, QA = np.linalg.eigh(A)
    g, QG = np.linalg.eigh(G)
    return -QG @ ((QG.T @ grad @ QA) / (np.outer(g, a) + damping)) @ QA.T


# %% 9. The optimizer


def running_average(old, new, k):
    """Add a new batch's factor to the running average (the paper's section 5). (1 point)

    old : (n, n) array, the average of the k - 1 batches before, or None for the first batch
    new : (n, n) array, the factor of this batch; k : int, its number, 1 for the first
    Return the new average: epsilon old + (1 - epsilon) new, with the paper's epsilon.

    Hints:
    1. epsilon = min(1 - 1/k, 0.95).
    2. For k = 1, epsilon is 0: the average is the first batch's factor.
    """
    epsilon = min(1 - 1 / k, 0.95)
    return new if old is None else epsilon * old + (1 - epsilon) * new


def model_change(grad, delta, F, damping):
    """Predict the change of h by a step: M(delta) - M(0). (1 point)

    grad, delta : (P,) arrays; F : (P, P) array, the exact Fisher; damping : float, lambda + eta
    Return the number that the paper's quadratic model (sections 6.1, 6.4) gives.

    Hints:
    1. A linear term and a quadratic term; the quadratic term has a 1/2.
    2. The curvature of the model is F with the damping on its diagonal.
    """
    return grad @ delta + (delta @ F @ delta + damping * delta @ delta) / 2


def alpha_mu(Delta, delta_0, grad, F, damping):
    """Find the best multiples of the proposal and of the last step (the paper's section 7). (2 points)

    Delta, delta_0, grad : (P,) arrays; F : (P, P) array, the exact Fisher; damping : float, lambda + eta
    Return the pair of numbers (alpha, mu) for which M(alpha Delta + mu delta_0) is smallest.

    Hints:
    1. M is quadratic in (alpha, mu): a symmetric 2 x 2 matrix and a vector of 2.
    2. The matrix has the entries v^T (F + damping I) w for v and w in (Delta, delta_0); the vector has grad^T v.
    3. Mind the sign: at the minimum the gradient of M is zero.
    """
    D = np.stack([Delta, delta_0])
    alpha, mu = -np.linalg.solve(D @ F @ D.T + damping * D @ D.T, D @ grad)
    return alpha, mu


def reduction_ratio(h_before, h_after, M):
    """Compare the change of h by a step with the prediction of the quadratic model. (1 point)

    h_before, h_after : float, the objective before and after the step; M : float, M(delta) - M(0), negative
    Return rho (the paper's section 6.5).

    Hints:
    1. It is 1 if the model was right, and positive if h fell.
    """
    return (h_after - h_before) / M


def next_lambda(lambda_, rho, omega1):
    """Adapt lambda by the paper's rule (section 6.5). (1 point)

    lambda_ : float; rho : float, the reduction ratio, NaN if h was not finite; omega1 : float, below 1
    Return the new lambda. A NaN counts as a bad step.

    Hints:
    1. rho above 3/4: the model can be trusted more. Below 1/4: less. Between them nothing changes.
    2. Less trust is more damping. Any comparison with NaN is False.
    """
    if rho > 3 / 4:
        return omega1 * lambda_
    return lambda_ if rho >= 1 / 4 else lambda_ / omega1


def gamma_candidates(gamma, omega2, low, high):
    """List the gammas to try (the paper's section 6.6). (1 point)

    gamma, omega2, low, high : float; omega2 is below 1
    Return a list of the three candidates, each kept within [low, high]. The order does not matter.

    Hints:
    1. One is gamma itself, one is smaller and one larger by the factor omega2.
    """
    return [min(max(g, low), high) for g in (gamma, omega2 * gamma, gamma / omega2)]


def kfac_update(a_bar, g, grad, delta_0, F, damping):
    """Assemble an update of block-diagonal K-FAC (lines 1 to 3 of tutorial 9), with gamma = sqrt(damping). (3 points)

    a_bar : list of L arrays (N, n_i); g : list of L arrays (K, N, m_i), what comes back from the K columns of a root of
        F_R; all of one batch, without a running average
    grad, delta_0 : lists of L arrays (m_i, n_i), the gradient of h and the last update
    F : (P, P) array, the exact Fisher, for theta = vec of layer 0, then of layer 1, and so on (columns stacked)
    damping : float, lambda + eta, in the factors and in M
    Return (Delta, alpha, mu): the proposal, a list of L arrays, and the numbers for which M(alpha Delta + mu delta_0)
    is smallest. (The weights then change by alpha Delta + mu delta_0.) You may call your other answers.

    Hints:
    1. In each layer: A and G, pi, the damped factors, the step.
    2. Each of these, and alpha and mu, is an exercise above.
    3. alpha_mu takes vectors: flatten the lists in the order of F.
    """
    def flat(V):
        return np.concatenate([v.T.ravel() for v in V])
    Delta = []
    for a, gi, V in zip(a_bar, g, grad, strict=True):
        A, G = a.T @ a / len(a), exact_G(gi)
        Delta.append(kfac_step(*damped_factors(A, G, damping, trace_pi(A, G)), V))
    return Delta, *alpha_mu(flat(Delta), flat(delta_0), flat(grad), F, damping)


# %% 11. The family


def ekfac_scales(g, a_bar, A, G):
    """Measure the second moments in the eigenbasis of K-FAC: the scales of EKFAC. (2 points)

    g : (K, N, m) array, what comes back from the columns of a root of F_R; a_bar : (N, n) array
    A : (n, n) array, G : (m, m) array, the factors, undamped
    Return the (m, n) array S = (1/N) sum_n sum_k (Q_G^T g_kn a_bar_n^T Q_A)^2, squared entry by entry. The eigenvalues
    of both factors ascend, as np.linalg.eigh gives them.

    Hints:
    1. Project g and a_bar onto the eigenvectors first.
    2. The square of an outer product is the outer product of the squares.
    """
    QA, QG = np.linalg.eigh(A)[1], np.linalg.eigh(G)[1]
    return np.einsum("kni,nj->ij", (g @ QG)**2, (a_bar @ QA)**2) / len(a_bar)


def foof_step(A, grad, damping):
    """Take the step of FOOF in one layer: K-FAC with only the input factor. (1 point)

    A : (n, n) array, undamped; grad : (m, n) array; damping : float
    Return the (m, n) array Delta of K-FAC with G = I and exact damping: A ⊗ I + damping I.

    Hints:
    1. A ⊗ I + damping I = (A + damping I) ⊗ I.
    2. A belongs to the columns of the gradient: the division is from the right.
    """
    return -np.linalg.solve(A + damping * np.eye(len(A)), grad.T).T


def nearest_product(B, n, m):
    """Find the Kronecker product nearest to a matrix. (3 points)

    B : (n m, n m) array; n, m : int
    Return the pair (A, G), (n, n) and (m, m) arrays, for which ||B - A ⊗ G|| (Frobenius) is smallest. Only A ⊗ G
    is compared: how a factor is shared between A and G is up to you.

    Hints:
    1. Rearrange B so that every m x m block becomes a row: then A ⊗ G becomes the outer product of vec A and vec G.
    2. B.reshape(n, m, n, m)[i, p, j, q] = A[i, j] G[p, q]. Bring (i, j) to the front.
    3. The nearest matrix of rank one comes from the leading singular triple.
    """
    R = B.reshape(n, m, n, m).transpose(0, 2, 1, 3).reshape(n * n, m * m)
    U, s, Vt = np.linalg.svd(R)
    return s[0] * U[:, 0].reshape(n, n), Vt[0].reshape(m, m)
