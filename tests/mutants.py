"""Break the package on purpose, one line at a time, and see which tests notice: ``python -m tests.mutants [NAME ...]``.

Each mutant is a mistake that K-FAC implementations make. It is put into a copy of the package, the identity tests of
that copy are run, and the matrix of who killed whom is printed. The no-op mutants change the code and nothing that it
computes: they must survive, or the tests assert more than they should.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The tests of identities, and those of what surrounds a run; the demo and pictures are left out, since they say
#: little about where a mistake is.
IDENTITIES = ("network", "likelihoods", "params", "model", "kronecker", "fisher", "hessian", "factors", "damping",
              "structures", "exactness", "family", "estimators", "quadratic_model", "covariance", "budget",
              "invariance", "kfac", "baselines", "training", "checkpoints", "files", "settings", "run",
              "comparison")
#: Of these, the ones that a no-op of a file meets in the test suite.
QUICK = {"checkpoints.py": ("checkpoints", "settings")}
CORE = IDENTITIES[:IDENTITIES.index("training")]
NOT_SLOW = ("-m", "not slow")


@dataclass(frozen=True)
class Mutant:
    """A line of the package and what a mistaken one would say."""

    name: str
    killer: str                                             # the tests that notice it at least; none for a no-op
    file: str
    right: str
    wrong: str

    @property
    def survives(self) -> bool:
        """Whether it changes nothing that is computed."""
        return not self.killer


MUTANTS = (
    Mutant("G divided by N squared", "factors", "factors/kronecker.py",
           "S / N for pair, S in G.items()",
           "S / N**2 for pair, S in G.items()"),
    Mutant("labels in place of samples", "kfac", "optimizers/kfac.py",
           "return self.expectation if targets is None else sampled(targets)",
           "from ..expectations import empirical; return self.expectation if targets is None else empirical()"),
    Mutant("likeliest class in place of a sample", "likelihoods", "likelihoods.py",
           "y: Labels = np.argmax(u < edges, axis=-1)",
           "y: Labels = np.broadcast_to(z.argmax(axis=1), (draws or 1, len(z)))"),
    Mutant("square of the mean gradient", "factors", "factors/kronecker.py",
           "part = second_moment(g[i], g[j])",
           "part = sum(np.outer(u.mean(axis=0), v.mean(axis=0)) for u, v in zip(g[i], g[j])) * N"),
    Mutant("samples summed with 1/M on the gradients", "factors", "expectations.py",
           "return dz / at.z.dtype.type(np.sqrt(len(dz)))",
           "return dz / len(dz)"),
    Mutant("Kronecker factors swapped", "structures", "curvature/block_diagonal.py",
           "[np.kron(A, G) for A, G in self.damped]",
           "[np.kron(G, A) for A, G in self.damped]"),
    Mutant("rearrangement with rows stacked", "factors", "kronecker.py",
           "B.reshape(n1, m1, n2, m2).transpose(3, 1, 2, 0)",
           "B.reshape(n1, m1, n2, m2).transpose(1, 3, 2, 0)"),
    Mutant("bias column first", "network", "network.py",
           "a_bar[:, :-1] = a\n    a_bar[:, -1] = 1",
           "a_bar[:, 1:] = a\n    a_bar[:, 0] = 1"),
    Mutant("bias column sent backwards", "network", "network.py",
           "W.shape[0]) @ W[:, :d])",
           "W.shape[0]) @ W[:, W.shape[1] - d:])"),
    Mutant("slopes left out of the backward pass", "network", "network.py",
           "            da *= slope\n",
           ""),
    Mutant("tangent without the layers below", "network", "network.py",
           "ds = ds @ W[:, :ds.shape[1]].T + a_bar @ v.T",
           "ds = a_bar @ v.T"),
    Mutant("logistic' = 1 - a", "network", "network.py",
           "lambda s, a: a * (1 - a), lambda",
           "lambda s, a: 1 - a, lambda"),
    Mutant("missing 1/2 in the squared error", "likelihoods", "likelihoods.py",
           "return self.error(z, y) / (2 * self.variance)",
           "return self.error(z, y) / self.variance"),
    Mutant("F_R of the classes without p p^T", "likelihoods", "likelihoods.py",
           "F = -p[:, :, None] * p[:, None, :]",
           "F = 0 * p[:, :, None] * p[:, None, :]"),
    Mutant("root of F_R transposed", "likelihoods", "likelihoods.py",
           "B = -p[:, :, None] * q[:, None, :]",
           "B = -q[:, :, None] * p[:, None, :]"),
    Mutant("1 - p by subtraction", "likelihoods", "likelihoods.py",
           "    others[leader] = rest.sum(axis=1)",
           "    #"),
    Mutant("weight decay left out of the gradient", "model", "model.py",
           "[D + eta * W if eta else D for",
           "[D for"),
    Mutant("A centred", "factors", "factors/kronecker.py",
           "second_moment(at.a_bar[i], at.a_bar[j]) / N for",
           "second_moment(at.a_bar[i] - at.a_bar[i].mean(axis=0), at.a_bar[j]) / N for"),
    Mutant("G of the layer before", "factors", "factors/kronecker.py",
           "part = second_moment(g[i], g[j])",
           "part = second_moment(g[max(i - 1, 0)], g[max(j - 1, 0)])"),
    Mutant("cross factors not transposed below the diagonal", "factors", "factors/base.py",
           "return self[key[::-1]].T",
           "return self[key[::-1]]"),
    Mutant("moments merged by a plain mean", "parts", "factors/base.py",
           "(self.n * a + other.n * b) / n",
           "(a + b) / 2"),
    Mutant("running average started at the identity", "factors", "factors/average.py",
           "return RunningAverage(self.ceiling, k, moments)",
           "import numpy as np; return RunningAverage(self.ceiling, k, moments.combine("
           "lambda a: 0.95 * np.eye(*a.shape) + 0.05 * a))"),
    Mutant("running average with a fixed rate", "factors", "factors/average.py",
           "return min(1 - 1 / k, ceiling)",
           "return ceiling"),
    Mutant("pi squared", "damping", "damping.py",
           "return math.sqrt(float(a) / float(g))",
           "return float(a) / float(g)"),
    Mutant("pi upside down", "damping", "damping.py",
           "return math.sqrt(float(a) / float(g))",
           "return math.sqrt(float(g) / float(a))"),
    Mutant("damping not under the root", "damping", "damping.py",
           "root = math.sqrt(damping)",
           "root = damping"),
    Mutant("exact damping under the root", "structures", "curvature/eigen_damped.py",
           "kronecker.spectrum(A, G) + self.damping",
           "kronecker.spectrum(A, G) + self.damping**0.5"),
    Mutant("lambda rule upside down", "damping", "damping.py",
           "    return lambda_ / omega1",
           "    return lambda_ * omega1"),
    Mutant("gradient not multiplied by the inverse of A", "kronecker", "kronecker.py",
           "return A.solve_right(G.solve(V))",
           "return G.solve(V)"),
    Mutant("gram of directions not divided by N", "quadratic_model", "fisher.py",
           "np.vdot(u, Fv) / len(at)",
           "np.vdot(u, Fv)"),
    Mutant("quadratic model without its 1/2", "quadratic_model", "quadratic_model.py",
           "c @ self.B @ c / 2",
           "c @ self.B @ c"),
    Mutant("lambda left out of the quadratic model", "kfac", "optimizers/kfac.py",
           "lambda_ + self.model.weight_decay, float(",
           "self.model.weight_decay, float("),
    Mutant("momentum left out of the step", "kfac", "optimizers/kfac.py",
           "return delta if delta_0 is None else params.add(",
           "return delta if True else params.add("),
    Mutant("gamma of the highest M", "kfac", "optimizers/kfac.py",
           "return min(candidates,",
           "return max(candidates,"),
    Mutant("damping gamma in place of its square", "kfac", "optimizers/kfac.py",
           "source.weights), damping=source.gamma**2)",
           "source.weights), damping=source.gamma)"),
    Mutant("momentum of Polyak in place of Nesterov", "baselines", "optimizers/sgd.py",
           "params.add(state.weights, drift), x)",
           "state.weights, x)"),
    Mutant("Adam without bias correction", "baselines", "optimizers/adam.py",
           "self.learning_rate / (1 - self.beta1**t)",
           "self.learning_rate"),
    Mutant("tridiagonal: third sweep on what it has written", "family", "curvature/block_tridiagonal.py",
           "W[i + 1] = U[i + 1] - PsiG.T @ U[i] @ PsiA",
           "W[i + 1] = U[i + 1] - PsiG.T @ W[i] @ PsiA"),
    Mutant("tridiagonal: third sweep left out", "family", "curvature/block_tridiagonal.py",
           "W[i + 1] = U[i + 1] - PsiG.T @ U[i] @ PsiA",
           "W[i + 1] = U[i + 1]"),
    Mutant("tridiagonal: Sigma with a plus", "family", "curvature/block_tridiagonal.py",
           "KroneckerSum.factor(A, G, C, D, -1,",
           "KroneckerSum.factor(A, G, C, D, 1,"),
    Mutant("tridiagonal: cross factors damped too", "family", "curvature/block_tridiagonal.py",
           "self.factors.G[i, i + 1]) for i in",
           "self.factors.G[i, i + 1] + self.damping) for i in"),
    Mutant("tridiagonal: what is explained without G of the next layer", "family", "curvature/block_tridiagonal.py",
           "tuple((PsiA @ A @ PsiA.T, PsiG @ G @ PsiG.T)",
           "tuple((PsiA @ A @ PsiA.T, PsiG @ PsiG.T)"),
    Mutant("Appendix B without its sign", "family", "kronecker.py",
           "scales = 1 + sign * np.outer(s2, s1)",
           "scales = 1 + np.outer(s2, s1)"),
    Mutant("EKFAC with K-FAC's eigenvalues", "family", "curvature/ekfac.py",
           "S + self.damping for S in basis_moments(self._gradients, self.at.a_bar, self.bases)",
           "__import__('kfac_ref').kronecker.spectrum(A, G) + self.damping for A, G in self.bases"),
    Mutant("EKFAC: square of the sum over columns", "family", "layers.py",
           "return np.square(g).sum(axis=0).T @ np.square(a_bar)",
           "return np.square(g.sum(axis=0)).T @ np.square(a_bar)"),
    Mutant("EKFAC of another expectation", "family", "curvature/base.py",
           "return gradients(self.at, self.expectation)",
           "return gradients(self.at, exact)"),
    Mutant("FOOF damped under the root", "family", "curvature/input_only.py",
           "add_to_diagonal(A, self.damping) for",
           "add_to_diagonal(A, self.damping**0.5) for"),
    Mutant("squares in another basis", "layers", "layers.py",
           "g = g if Q_G is None else g @ Q_G",
           "g = g if Q_G is None else g @ Q_G.T"),
    Mutant("dual: damping not times N", "family", "curvature/exact_dual.py",
           "self.damping * N)",
           "self.damping)"),
    Mutant("dual: Gram matrix without the inputs", "family", "layers.py",
           " * (a_bar @ a_bar.T)[:, None, :]",
           ""),
    Mutant("nearest: weights repeated, not tiled", "estimators", "factors/nearest.py",
           "np.tile(w, K)",
           "np.repeat(w, K)"),
    Mutant("nearest: inputs not weighted by the gradients", "estimators", "factors/nearest.py",
           "return vec((a * w[:, None]).T @ a) / N",
           "return vec(a.T @ a) / N"),
    Mutant("nearest: singular value in both factors", "estimators", "factors/nearest.py",
           "sign * np.sqrt(s) * A, sign * np.sqrt(s)",
           "sign * s * A, sign * s"),
    Mutant("KFRA: slopes averaged before their product", "estimators", "factors/kfra.py",
           "second_moment(s, s) / N for i, s in",
           "np.outer(s.mean(axis=0), s.mean(axis=0)) for i, s in"),
    Mutant("KFRA: bias column sent backwards", "estimators", "factors/kfra.py",
           "W = weights[i][:, :len(slopes)]",
           "W = weights[i][:, -len(slopes):]"),
    Mutant("TKFAC: both factors over delta", "estimators", "factors/shampoo.py",
           "np.sqrt(np.trace(L)) or 1.0",
           "np.trace(L) or 1.0"),
    Mutant("TKFAC: A not weighted by the gradients", "layers", "layers.py",
           "return second_moment(a_bar * g_squared[:, None], a_bar),",
           "return second_moment(a_bar, a_bar) * g_squared.mean(),"),
    Mutant("Shampoo not over its trace", "estimators", "factors/shampoo.py",
           "[R.dtype.type(np.sqrt(np.trace(L)) or 1.0)]",
           "[1.0]"),
    Mutant("Shampoo's roots left out", "estimators", "factors/shampoo.py",
           "Eigen.factor(R, f\"R of layer {i}\").root()",
           "R"),
    Mutant("L of the last chunk alone", "layers", "layers.py",
           "L += second_moment(D.swapaxes(-1, -2), D.swapaxes(-1, -2))",
           "L = second_moment(D.swapaxes(-1, -2), D.swapaxes(-1, -2))"),
    Mutant("Hessian without the curvature of the units", "hessian", "network.py",
           " + da * forward.activations[i - 1].ddphi(s, a) * Rs[i - 1]",
           ""),
    Mutant("Hessian without the change of the weights above", "hessian", "network.py",
           " + g[i] @ V[i][:, :d]",
           ""),
    Mutant("Hessian without the change of the activations", "hessian", "hessian.py",
           " + adjoint(g[i], Ra_bar[i])",
           ""),
    Mutant("Hessian with weight decay", "hessian", "hessian.py",
           "adjoint(g[i], Ra_bar[i]) for i in",
           "adjoint(g[i], Ra_bar[i]) + at.model.weight_decay * V[i] for i in"),
    Mutant("second derivative of tanh without its 2", "hessian", "network.py",
           "lambda s, a: -2 * a * (1 - a * a)",
           "lambda s, a: -a * (1 - a * a)"),
    Mutant("covariance as the difference of two means", "covariance", "analysis/covariance.py",
           "return (Gamma - Gamma.mean(axis=0)).T @ (Alpha - Alpha.mean(axis=0)) / len(at)",
           "return Gamma.T @ Alpha / len(at) - np.outer(Gamma.mean(axis=0), Alpha.mean(axis=0))"),
    Mutant("covariance over N - 1", "covariance", "analysis/covariance.py",
           "(Alpha - Alpha.mean(axis=0)) / len(at)",
           "(Alpha - Alpha.mean(axis=0)) / max(len(at) - 1, 1)"),
    Mutant("covariance always of the exact expectation", "covariance", "analysis/covariance.py",
           "g = gradients(at, expectation)[i]",
           "g = gradients(at, exact)[i]"),
    Mutant("fourth cumulant without the product of covariances", "covariance", "analysis/covariance.py",
           '- block("ab,pq", Caa, Cgg)',
           ""),
    Mutant("fourth cumulant without the mixed covariances", "covariance", "analysis/covariance.py",
           '- block("ap,bq", Cag, Cag) -',
           "-"),
    Mutant("third cumulant of activations not centred", "covariance", "analysis/covariance.py",
           'np.einsum("nb,npq->bpq", a, centred)',
           'np.einsum("nb,npq->bpq", at.a_bar[i], centred)'),
    Mutant("means of the two activations swapped", "covariance", "analysis/covariance.py",
           'block("a,bpq", mean_a, kappa3), block("b,apq", mean_a, kappa3)',
           'block("b,apq", mean_a, kappa3), block("a,bpq", mean_a, kappa3)'),
    Mutant("error relative to the matrix that is judged", "budget", "analysis/budget.py",
           "scale = float(np.linalg.norm(F))",
           "scale = float(np.linalg.norm(now))"),
    Mutant("change from the first matrix", "budget", "analysis/budget.py",
           "            before = now\n",
           "            before = now if before is None else before\n"),
    Mutant("length upside down", "budget", "analysis/budget.py",
           "params.norm(step) / params.norm(natural), _decrease",
           "params.norm(natural) / params.norm(step), _decrease"),
    Mutant("decrease of the step as it is, not rescaled", "budget", "analysis/budget.py",
           "return -model.minimum()[1]",
           "return -model.value([-1.0])"),
    Mutant("decrease of M without damping", "budget", "analysis/budget.py",
           "np.array([params.inner(grad, step)]), damping,",
           "np.array([params.inner(grad, step)]), 0.0,"),
    Mutant("budget of sampled targets from exact factors", "budget", "analysis/budget.py",
           '("sampled targets", curvature.EigenDamped(drawn, damping))',
           '("sampled targets", curvature.EigenDamped(exact, damping))'),
    Mutant("factors in use left out of the budget", "budget", "analysis/budget.py",
           "in_use = drawn if average is None else average",
           "in_use = drawn"),
    Mutant("Phi transposed on the way back", "invariance", "analysis/invariance.py",
           "* forward.inner.slopes[i - 1]) @ Phi[i - 1])",
           "* forward.inner.slopes[i - 1]) @ Phi[i - 1].T)"),
    Mutant("Omega not transposed in the forward pass", "invariance", "analysis/invariance.py",
           "a.append(a_bar[-1] @ Omega.T)",
           "a.append(a_bar[-1] @ Omega)"),
    Mutant("transformed tangent without the last Phi", "invariance", "analysis/invariance.py",
           "return ds @ Phi[-1].T",
           "return ds"),
    Mutant("transform by Omega in place of its inverse", "invariance", "analysis/invariance.py",
           "np.linalg.solve(Om.T, np.linalg.solve(Ph, W).T).T",
           "(Om.T @ np.linalg.solve(Ph, W).T).T"),
    Mutant("weights mapped back by the transposes", "invariance", "analysis/invariance.py",
           "[Phi @ W @ Omega for",
           "[Phi.T @ W @ Omega.T for"),
    Mutant("part of a transformed pass with the inner one whole", "invariance", "analysis/invariance.py",
           "tuple(s[rows] for s in self.s), inner)",
           "tuple(s[rows] for s in self.s), self.inner)"),
    Mutant("whitening by the inverse, not its root", "invariance", "analysis/invariance.py",
           "(E.Q / np.sqrt(E.values)) @ E.Q.T",
           "(E.Q / E.values) @ E.Q.T"),
    Mutant("centred whitening that leaves the mean", "invariance", "analysis/invariance.py",
           "Omega[-1][:-1, -1] = -root @ mean",
           "Omega[-1][:-1, -1] = 0 * mean"),
    Mutant("centred whitening by the second moment", "invariance", "analysis/invariance.py",
           "A[:-1, :-1] - np.outer(mean, mean)",
           "A[:-1, :-1]"),
    Mutant("batches that begin with the first after a resume", "training", "training.py",
           "start += schedule(k) % N",
           "start += 0"),
    Mutant("averaged iterate that starts afresh at a resume", "training", "training.py",
           "keep = min(1 - 1 / state.k, xi)",
           "keep = min(1 - 1 / (len(self.records) + 1), xi)"),
    Mutant("checkpoint without what the structure was made from", "checkpoints", "checkpoints.py",
           "state = type(optimizer.init(weights))(**content[\"state\"])",
           "state = type(optimizer.init(weights))(**content[\"state\"] | {\"refresh\": None})"),
    Mutant("kept structure made again from the present average", "kfac", "optimizers/kfac.py",
           "kept = None if refreshed else state.refresh",
           "kept = None"),
    Mutant("checkpoint renamed before it is forced to the disk", "checkpoints", "files.py",
           "                os.fsync(file.fileno())\n",
           ""),
    Mutant("checkpoint of other settings taken", "checkpoints", "checkpoints.py",
           'header["settings"].get(name), settings.get(name))',
           "settings.get(name), settings.get(name))"),
    Mutant("damage that only some errors tell of", "checkpoints", "checkpoints.py",
           "    except Exception as error:              # a damaged file makes",
           "    except (OSError, EOFError, ValueError) as error:    # a damaged file makes"),
    Mutant("hash of a checkpoint without its arrays", "checkpoints", "checkpoints.py",
           "        sha.update(a.tobytes())\n",
           ""),
    Mutant("hash of a checkpoint without its header", "checkpoints", "checkpoints.py",
           "sha = hashlib.sha256(digest(header).encode())",
           "sha = hashlib.sha256()"),
    Mutant("arrays that stand twice told apart by their values", "checkpoints", "checkpoints.py",
           "if a is value), len(arrays))",
           "if a.size == value.size), len(arrays))"),
    Mutant("lines after the checkpoint kept", "run", "experiments/run.py",
           "task.optimizer, last.state.k)\n    except",
           "task.optimizer)\n    except"),
    Mutant("torn line after the checkpoint taken for damage", "run", "experiments/history.py",
           "            if k >= until:\n                break\n            raise\n",
           "            raise\n"),
    Mutant("missing steps taken in silence", "run", "experiments/history.py",
           'if entry["kind"] == "step" and entry["k"] != k + 1:',
           "if False:"),
    Mutant("name that is given twice taken in silence", "comparison", "files.py",
           "if twice := sorted({key for key in names if names.count(key) > 1}):",
           "if twice := []:"),
    Mutant("seed that is given twice taken in silence", "comparison", "experiments/comparison.py",
           "if twice := sorted({seed for seed in every if every.count(seed) > 1}):",
           "if twice := []:"),
    Mutant("stopped in the middle of a step", "run", "experiments/recorder.py",
           "        if len(asked) > 1:\n            raise KeyboardInterrupt",
           "        raise KeyboardInterrupt"),
    Mutant("run resumed on other data", "run", "experiments/run.py",
           'if digest_of(data) != content["data_sha256"]:',
           "if False:"),
    Mutant("weights of the first seed whatever the seed", "settings", "experiments/settings.py",
           "np.random.default_rng(self.seed)",
           "np.random.default_rng(0)"),
    Mutant("code layer that is not linear", "settings", "experiments/settings.py",
           '(*units, "identity", *units)',
           '(*units, "logistic", *units)'),
    Mutant("growing batches whatever the numbers", "settings", "experiments/settings.py",
           "return training.growing(N, first, full_at)",
           "return training.growing(N)"),
    Mutant("tuned on the seeds that are reported", "comparison", "experiments/comparison.py",
           "for seed in comparison.tuning_seeds]",
           "for seed in comparison.seeds]"),
    Mutant("kept run of any settings taken", "comparison", "experiments/results.py",
           "-{checkpoints.digest(asked)[:8]}.json",
           ".json"),
    Mutant("interrupted run kept as a result", "comparison", "experiments/comparison.py",
           "    if history.interrupted:\n        raise KeyboardInterrupt\n    return history",
           "    return history"),
    Mutant("file that is half there after a full disk", "files", "files.py",
           'part = path.with_name(f".kfac_ref-{os.getpid()}-{next(_NUMBERS)}.part")',
           "part = path"),
    Mutant("file of somebody else replaced", "files", "files.py",
           "    if not own:\n        raise",
           "    if False:\n        raise"),
    Mutant("symbolic link taken for the own file", "files", "files.py",
           "    if path.is_symlink():\n",
           "    if False:\n"),
    Mutant("files replaced one by one", "files", "files.py",
           "        for path, part in parts.items():\n            with naming(path):",
           "            with naming(path):"),
    Mutant("changed file taken for the own one", "files", "experiments/script.py",
           "earlier.get(file.name) == _digest(file.read_bytes())",
           "file.name in earlier"),
    Mutant("diverged state saved", "run", "experiments/recorder.py",
           "self.best if training.diverged(history.evaluations) else history",
           "history"),
    Mutant("state with the highest loss kept", "run", "experiments/recorder.py",
           "and evaluation.loss < self.lowest:",
           "and evaluation.loss > self.lowest:"),
    Mutant("optimizer that shares its caller's weights", "baselines", "params.py",
           'v.copy(order="K")',
           "v"),
    Mutant("D of one position alone", "layers", "layers.py",
           "return g.reshape(K, N, -1, m).transpose(0, 1, 3, 2) @ a_bar.reshape(N, -1, n)",
           "return g.reshape(K, N, -1, m)[:, :, 0, :, None] * a_bar.reshape(N, -1, n)[:, 0, None, :]"),
    Mutant("squares of positions added up one by one", "layers", "layers.py",
           "    if not has_positions(a_bar):\n        return np.square(g)",
           "    if True:\n        g, a_bar = g.reshape(len(g), -1, g.shape[-1]), flat_rows(a_bar)\n"
           "        return np.square(g)"),
    Mutant("targets of the first rows for every part", "expectations", "expectations.py",
           "return targets[..., at.rows] if at.model.likelihood.labels else targets[..., at.rows, :]",
           "return targets[..., :len(at)] if at.model.likelihood.labels else targets[..., :len(at), :]"),
    Mutant("every part draws the same numbers", "expectations", "expectations.py",
           "(self.seed, self.step, first)",
           "(self.seed, self.step)"),
    Mutant("mean over parts that counts every part alike", "parts", "parts.py",
           "weighted = _combine(lambda a, n=n: n * a, value)",
           "weighted, n = value, 1"),
    Mutant("KFRA finished into means", "parts", "factors/kfra.py",
           "return Factors.of_layers([arrays[\"A\", i] for i in range(L)], G[::-1], moments.n)",
           "f = Factors.of_layers([arrays[\"A\", i] for i in range(L)], G[::-1], moments.n)\n"
           "    return Factors(f.A, f.G, f.n, means=True)"),
    Mutant("row finished with the weights of the step before", "approximations", "optimizers/kfac.py",
           "return Refresh(gamma, state.weights, average.moments)",
           "return Refresh(gamma, state.weights if state.refresh is None else state.refresh.weights, average.moments)"),
    Mutant("the first row of the table whatever the name", "settings", "experiments/settings.py",
           "checks.known(\"approximation\", approximation, approximations.TABLE)",
           "approximations.BLOCK_DIAGONAL"),
    Mutant("a column of ones where there is no bias", "bias", "network.py",
           "a_bar.append(_with_ones(now) if b else now)",
           "a_bar.append(_with_ones(now) if b else _with_ones(now)[:, 1:])"),
    Mutant("the variance left out of the noise", "likelihoods", "likelihoods.py",
           "return z + math.sqrt(self.variance) * rng",
           "return z + rng"),
    Mutant("no-op: hash of settings written otherwise", "", "checkpoints.py",
           "    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()",
           "    return hashlib.sha256(json.dumps(settings, sort_keys=True, indent=1).encode()).hexdigest()"),
    Mutant("no-op: chunks of another size", "", "layers.py",
           "CHUNK_BYTES = 128 * 2**20",
           "CHUNK_BYTES = 2**14"),
    Mutant("no-op: second moments of g shifted by a constant", "", "analysis/covariance.py",
           "+ np.outer(mean_g, mean_g)",
           ""),
    Mutant("no-op: A solved before G", "", "kronecker.py",
           "return A.solve_right(G.solve(V))",
           "return G.solve(A.solve_right(V))"),
    Mutant("no-op: a root of the other sign", "", "likelihoods.py",
           "return _diagonal(np.sqrt(p * q))",
           "return -_diagonal(np.sqrt(p * q))"),
    Mutant("no-op: norms by another formula", "", "params.py",
           "return float(np.sqrt(inner(V, V)))",
           "return inner(V, V) ** 0.5"),
)


def pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a copy of the package."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "KFAC_REF_HYPOTHESIS": "mutants", "COLUMNS": "200",
                               "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=folder,
                          env=environment, capture_output=True, text=True, check=False)


@cache
def compiled() -> Path:
    """Return a copy of the package and its tests with their bytecode, from which each mutant is copied.

    A mutant's file is newer than its bytecode, so that Python compiles that one alone.
    """
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder)
    for name in ("kfac_ref", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", copy)
    pytest(copy, "--collect-only", *(f"tests/test_{name}.py" for name in IDENTITIES))
    return copy


def run(mutant: Mutant, identities: tuple[str, ...], *options: str) -> Counter[str]:
    """Run tests on a copy of the package with this mutant, and return the failures by test file."""
    text = (ROOT / "kfac_ref" / mutant.file).read_text()
    if text.count(mutant.right) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its line stands {text.count(mutant.right)} times in "
                         f"{mutant.file}: {mutant.right!r}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(compiled(), copy, dirs_exist_ok=True)
        (copy / "kfac_ref" / mutant.file).write_text(text.replace(mutant.right, mutant.wrong))
        tests = [f"tests/test_{name}.py" for name in identities]
        done = pytest(copy, "--tb=no", "-rfE", *options, *tests)
        failed = re.findall(r"^(?:FAILED|ERROR) tests/test_(\w+)\.py", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1, 2, 5) or (done.returncode in (1, 2) and not failed):   # 5: none was selected
            raise RuntimeError(f"mutant {mutant.name!r}: pytest ended with {done.returncode}\n"
                               f"{done.stdout}{done.stderr}")
        return Counter(failed)


def failures(mutant: Mutant) -> int:
    """Run the tests that a mutant names, the slow ones last, up to the first that fails; a no-op meets the quick ones.
    """
    identities = QUICK.get(mutant.file, CORE) if mutant.survives else (mutant.killer,)
    quick = run(mutant, identities, "-x", *NOT_SLOW).total()
    return quick if quick or mutant.survives else run(mutant, identities, "-x", "-m", "slow").total()


def matrix(mutants: tuple[Mutant, ...] = MUTANTS) -> dict[Mutant, Counter[str]]:
    """Run mutants, two at a time, and return who failed."""
    compiled()

    def kills(mutant: Mutant) -> Counter[str]:
        found = run(mutant, IDENTITIES, *NOT_SLOW)
        return found if found or mutant.survives else run(mutant, (mutant.killer,), "-m", "slow")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(mutants, pool.map(kills, mutants), strict=True))


def report(kills: dict[Mutant, Counter[str]]) -> str:
    """Return the kill matrix as text: failures of each test file, and the verdict."""
    head = f"{'mutant':50s}" + "".join(f"{name[:9]:>10s}" for name in IDENTITIES) + "   verdict"
    lines = [head, "-" * len(head)]
    for mutant, failed in kills.items():
        verdict = ("killed" if failed else "survived") + ("" if bool(failed) != mutant.survives else "  <-- WRONG")
        counts = "".join(f"{failed[name] or '.':>10}" for name in IDENTITIES)
        lines.append(f"{mutant.name:50s}{counts}   {verdict}")
    wrong = [m for m in kills if not m.survives]
    no_op = [m for m in kills if m.survives]
    lines.append(f"\n{sum(bool(kills[m]) for m in wrong)} of {len(wrong)} mutants killed, "
                 f"{sum(not kills[m] for m in no_op)} of {len(no_op)} no-op mutants survived")
    return "\n".join(lines)


def main() -> int:
    """Print the matrix of all mutants, or of those whose names hold one of the arguments."""
    wanted = tuple(m for m in MUTANTS if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:]))
    kills = matrix(wanted)
    print(report(kills))
    return int(any(bool(failed) == mutant.survives for mutant, failed in kills.items()))


if __name__ == "__main__":
    sys.exit(main())
