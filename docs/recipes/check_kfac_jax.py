"""Check kfac-jax: the exact factors, the gradient and the damped step of a small classifier.

    pip install kfac_ref kfac-jax "jax<0.10"
    python docs/recipes/check_kfac_jax.py

It leaves two files, so that the shell can do the same: kfac-ref check problem.json theirs.json --dialect kfac-jax
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np

from kfac_ref import oracle

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
parameters = [(rng.standard_normal((i, o)), rng.standard_normal(o)) for i, o in ((3, 7), (7, 5))]
batch = rng.standard_normal((11, 3)), rng.integers(0, 5, 11)


def loss(parameters, batch):
    """Return the mean cross-entropy."""
    (W1, b1), (W2, b2) = parameters
    z = jnp.tanh(batch[0] @ W1 + b1) @ W2 + b2
    kfac_jax.register_softmax_cross_entropy_loss(z, batch[1])
    return -jnp.take_along_axis(jax.nn.log_softmax(z), batch[1][:, None], axis=1).mean()


estimator, key = kfac_jax.BlockDiagonalCurvature(loss), jax.random.PRNGKey(0)
state = estimator.init(key, (parameters, batch), exact_powers_to_cache=None, approx_powers_to_cache=None)
state = estimator.update_curvature_matrix_estimate(
    state, ema_old=0.0, ema_new=1.0, identity_weight=0.0, batch_size=11, rng=key, func_args=(parameters, batch),
    estimation_mode="fisher_exact")
gradient = jax.grad(loss)(parameters, batch)
solved = estimator.multiply_matpower(state, gradient, identity_weight=0.3, power=-1, exact_power=False,
                                     use_cached=False, pmap_axis_name=None)

theirs = {"A": [block.factors[0].value.tolist() for block in state.blocks_states],
          "G": [block.factors[1].value.tolist() for block in state.blocks_states],
          "gradient": [(W.tolist(), b.tolist()) for W, b in gradient],
          "step": [((-W).tolist(), (-b).tolist()) for W, b in solved]}
Path("theirs.json").write_text(json.dumps(theirs))

problem = oracle.Problem.from_arrays(
    weights=[W for W, _ in parameters], biases=[b for _, b in parameters], x=batch[0], y=batch[1], hidden=["tanh"],
    likelihood="categorical", layout="in,out", bias="separate", damping=0.3)
problem.write("problem.json")
print(oracle.check(problem, theirs, dialect="kfac-jax"))
