"""Check ASDL (asdfghjkl): the exact factors and the gradient of a small classifier.

    pip install kfac_ref asdfghjkl
    python docs/recipes/check_asdl.py

It leaves two files, so that the shell can do the same: kfac-ref check problem.json theirs.json --dialect asdl
"""

import json
from pathlib import Path

import torch
from asdl.fisher import FisherConfig, get_fisher_maker

from kfac_ref import oracle

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5))
x, y = torch.randn(11, 3), torch.randint(5, (11,))
maker = get_fisher_maker(net, FisherConfig(fisher_type="fisher_exact", fisher_shapes=["kron"],
                                           loss_type="cross_entropy", data_size=11))
maker.setup_loss_call(torch.nn.CrossEntropyLoss(), maker.setup_model_call(net, x), y)
maker.forward_and_backward(calc_loss_grad=True)

# A has no row for the bias. The step of KfacGradientMaker is that of two blocks a layer: another one than ours.
layers = [net[0], net[2]]
theirs = {"A": [layer.fisher.kron.A.tolist() for layer in layers],
          "G": [layer.fisher.kron.B.tolist() for layer in layers],
          "gradient": [(layer.weight.grad.tolist(), layer.bias.grad.tolist()) for layer in layers]}
Path("theirs.json").write_text(json.dumps(theirs))

problem = oracle.Problem.from_arrays(
    weights=[layer.weight.detach().numpy() for layer in layers],
    biases=[layer.bias.detach().numpy() for layer in layers], x=x.numpy(), y=y.numpy(), hidden=["tanh"],
    likelihood="categorical", layout="out,in", bias="separate")
problem.write("problem.json")
print(oracle.check(problem, theirs, dialect="asdl"))
