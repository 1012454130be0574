"""Check curvlinops: A, G, the gradient and the damped step of a small classifier.

    pip install kfac_ref curvlinops-for-pytorch
    python docs/recipes/check_curvlinops.py

It leaves two files, so that the shell can do the same: kfac-ref check problem.json theirs.json --dialect curvlinops
"""

import json
from pathlib import Path

import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

from kfac_ref import oracle

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5))
x, y = torch.randn(11, 3), torch.randint(5, (11,))
loss, parameters, names = torch.nn.CrossEntropyLoss(), list(net.parameters()), ["0", "2"]

# The default would be W and b in two blocks: dialect "curvlinops-separate".
op = KFACLinearOperator(net, loss, parameters, [(x, y)], fisher_type="type-2", separate_weight_and_bias=False,
                        check_deterministic=False)
op.compute_kronecker_factors()                              # only with that: a check has computed them, and they add up
factors = op.state_dict()
gradient = torch.autograd.grad(loss(net(x), y), parameters)
inverse = KFACInverseLinearOperator(op, damping=0.3, use_heuristic_damping=True)
step = [-v for v in inverse @ list(gradient)]

theirs = {"A": [factors["input_covariances"][name].tolist() for name in names],
          "G": [factors["gradient_covariances"][name].tolist() for name in names],
          "gradient": [(gradient[i].tolist(), gradient[i + 1].tolist()) for i in (0, 2)],
          "step": [(step[i].tolist(), step[i + 1].tolist()) for i in (0, 2)]}
Path("theirs.json").write_text(json.dumps(theirs))

problem = oracle.Problem.from_arrays(
    weights=[net[0].weight.detach().numpy(), net[2].weight.detach().numpy()],
    biases=[net[0].bias.detach().numpy(), net[2].bias.detach().numpy()], x=x.numpy(), y=y.numpy(), hidden=["tanh"],
    likelihood="categorical", layout="out,in", bias="separate", damping=0.3)
problem.write("problem.json")
print(oracle.check(problem, theirs, dialect="curvlinops"))
