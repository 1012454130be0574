"""Check NNGeometry: the exact factors and the damped step of a small classifier.

    pip install kfac_ref nngeometry
    python docs/recipes/check_nngeometry.py

It leaves two files, so that the shell can do the same: kfac-ref check problem.json theirs.json --dialect nngeometry
"""

import json
from pathlib import Path

import torch
from nngeometry.metrics import FIM
from nngeometry.object import PMatKFAC, PVector
from torch.utils.data import DataLoader, TensorDataset

from kfac_ref import oracle

torch.set_default_dtype(torch.float64)                      # FIM of a classifier needs it
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5))
x, y = torch.randn(11, 3), torch.randint(5, (11,))
F = FIM(net, DataLoader(TensorDataset(x.clone(), y), batch_size=11), PMatKFAC, variant="classif_logits")

gradient = torch.autograd.grad(torch.nn.CrossEntropyLoss()(net(x), y), list(net.parameters()))
v = PVector(F.generator.layer_collection, vector_repr=torch.cat([g.reshape(-1) for g in gradient]))
solved, names = F.solvePVec(v, regul=0.3).to_dict(), ["0", "2"]
theirs = {"A": [F.data[name][0].tolist() for name in names], "G": [F.data[name][1].tolist() for name in names],
          "gradient": [(gradient[i].tolist(), gradient[i + 1].tolist()) for i in (0, 2)],
          "step": [tuple((-u).tolist() for u in solved[name]) for name in names]}
Path("theirs.json").write_text(json.dumps(theirs))

layers = [net[0], net[2]]
problem = oracle.Problem.from_arrays(
    weights=[layer.weight.detach().numpy() for layer in layers],
    biases=[layer.bias.detach().numpy() for layer in layers], x=x.numpy(), y=y.numpy(), hidden=["tanh"],
    likelihood="categorical", layout="out,in", bias="separate", damping=0.3)
problem.write("problem.json")
print(oracle.check(problem, theirs, dialect="nngeometry"))
