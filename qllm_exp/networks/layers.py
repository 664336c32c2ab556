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
    """K linear layers of one size, each with inputs of its own: [K, I, R] -> [K, O, R], R rows.

    Each begins as nn.Linear(I, O) does. Rows come last because products, and what lies between them, are fastest so.
    """

    def __init__(self, count: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(count, n_inputs, n_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, n_outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """The layers from `first` on, as many as x [K, I, R] has inputs for."""
        these = slice(first, first + len(x))
        return torch.baddbmm(self.bias[these].mT, self.weight[these].mT, x)


def side_by_side(layer: nn.Linear, x: Tensor, width: int, first: int = 0, count: int | None = None) -> Tensor:
    """A linear layer read as many with `width` outputs each, which share their inputs: x [I, R] -> [K, width, R].

    Args:
        first, count: which of them, and how many; None: all from `first` on.
    """
    these = slice(first, None if count is None else first + count)
    weight, bias = layer.weight.view(-1, width, len(x))[these], layer.bias.view(-1, width, 1)[these]
    return torch.baddbmm(bias, weight, x.expand(len(weight), -1, -1))
