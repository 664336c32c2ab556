"""Plain layers: linear ones with ReLU between them, and many small ones side by side."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, ReLU between them: mlp(I, H, O) maps [..., I] to [..., O]."""
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(widths):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ParallelLinear(nn.Module):
    """K linear layers of one size, each with an input of its own: [..., K, I] -> [..., K, O].

    Each begins as nn.Linear(I, O) does.
    """

    def __init__(self, count: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(count, n_inputs, n_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, n_outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3).transpose(0, 1)  # [K, R, I]
        return torch.baddbmm(self.bias, rows, self.weight).transpose(0, 1).view(*x.shape[:-1], -1)
