"""Check BackPACK: the exact factors (KFLR) of a small classifier; it has no step.

    pip install kfac_ref backpack-for-pytorch
    python docs/recipes/check_backpack.py

It leaves two files, so that the shell can do the same: kfac-ref check problem.json theirs.json --dialect backpack
"""

import json
from pathlib import Path

import torch
from backpack import backpack, extend
from backpack.extensions import KFLR

from kfac_ref import oracle

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = extend(torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5)))
loss = extend(torch.nn.CrossEntropyLoss())
x, y = torch.randn(11, 3), torch.randint(5, (11,))
with backpack(KFLR()):
    loss(net(x), y).backward()

layers = [net[0], net[2]]
# A has no row for the bias, whose block is G alone.
theirs = {"A": [layer.weight.kflr[1].tolist() for layer in layers],
          "G": [layer.weight.kflr[0].tolist() for layer in layers],
          "gradient": [(layer.weight.grad.tolist(), layer.bias.grad.tolist()) for layer in layers]}
Path("theirs.json").write_text(json.dumps(theirs))

problem = oracle.Problem.from_arrays(
    weights=[layer.weight.detach().numpy() for layer in layers],
    biases=[layer.bias.detach().numpy() for layer in layers], x=x.numpy(), y=y.numpy(), hidden=["tanh"],
    likelihood="categorical", layout="out,in", bias="separate")
problem.write("problem.json")
print(oracle.check(problem, theirs, dialect="backpack"))
