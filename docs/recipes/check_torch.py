"""Check your own A and G in PyTorch: read them from the layers of a small classifier with hooks, in float32.

    pip install kfac_ref torch
    python docs/recipes/check_torch.py

It leaves three files, so that the shell can do the same: kfac-ref check problem.json theirs.npz
"""

import numpy as np
import torch

from kfac_ref import cli

net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5))
x, y, theirs = torch.randn(11, 3), torch.randint(5, (11,)), {}
layers = [layer for layer in net if isinstance(layer, torch.nn.Linear)]


def save(layer, inputs, outputs):
    """Store A in the forward pass and G in the backward pass."""
    i = layers.index(layer)
    a_bar = torch.cat([inputs[0].detach(), torch.ones(len(x), 1)], dim=1)       # [a, 1]
    theirs[f"A_{i}"] = a_bar.T @ a_bar / len(x)
    outputs.register_hook(lambda g: theirs.update({f"G_sampled_{i}": g.T @ g / len(x)}))


for layer in layers:
    layer.register_forward_hook(save)
z = net(x)
targets = torch.distributions.Categorical(logits=z).sample()
torch.nn.functional.cross_entropy(z, targets, reduction="sum").backward()       # a mean would divide g by N
np.savez("arrays.npz", x=x, y=y, targets=targets[None], **net.state_dict())
np.savez("theirs.npz", **theirs)

cli.main(["problem", "new", "arrays.npz", "--layout", "torch", "--hidden", "tanh", "--out", "problem.json"])
cli.main(["check", "problem.json", "theirs.npz"])
