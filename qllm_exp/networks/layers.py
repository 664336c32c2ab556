"""Plain layers: multilayer perceptrons, and many small linear layers evaluated as one product."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, with ReLU between them: mlp(I, H, O) maps [..., I] to [..., O]."""
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(widths):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ParallelLinear(nn.Module):
    """K linear layers of equal size, each with its own inputs: [K, I, R] -> [K, O, R] for R rows.

    Each layer is initialised like nn.Linear(I, O). Rows are the last dimension, where the products and the operations
    between them are fastest.

    Args:
        count: Number of layers K.
        n_inputs: Inputs I of each layer.
        n_outputs: Outputs O of each layer.
    """

    def __init__(self, count: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(count, n_inputs, n_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, n_outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Apply K consecutive layers.

        Args:
            x: Inputs [K, I, R]; K may be smaller than the number of layers.
            first: Index of the first layer to apply.

        Returns:
            Outputs [K, O, R].
        """
        layers = slice(first, first + len(x))
        return torch.baddbmm(self.bias[layers].mT, self.weight[layers].mT, x)


def grouped_linear(layer: nn.Linear, x: Tensor, width: int, first: int = 0, count: int | None = None) -> Tensor:
    """Apply a linear layer as groups of `width` outputs that share their inputs.

    Args:
        layer: Linear layer whose outputs are consecutive groups.
        x: Inputs [I, R].
        width: Outputs of each group.
        first: Index of the first group to apply.
        count: Number of groups K; None applies all groups from `first` on.

    Returns:
        Outputs [K, width, R].
    """
    groups = slice(first, None if count is None else first + count)
    weight, bias = layer.weight.view(-1, width, len(x))[groups], layer.bias.view(-1, width, 1)[groups]
    return torch.baddbmm(bias, weight, x.expand(len(weight), -1, -1))
