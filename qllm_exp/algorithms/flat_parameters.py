"""All parameters of some modules in one contiguous tensor: the optimiser, clipping and target updates are one operation each."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig


@dataclass
class TargetNetworkConfig(schema.AlgorithmConfig):
    """What every algorithm with target networks has."""

    target_update: str = schema.one_of("soft", "periodic")
    target_tau: float = schema.number(0.01, 0, 1)
    target_period: int = schema.number(200, 1)


class FlatParameters:
    """Re-points the parameters of `modules`, and their gradients, to views of `values` and `gradient`, both [P]."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        with torch.no_grad():
            self.values = nn.Parameter(torch.cat([p.reshape(-1) for p in parameters]))
            self.gradient = torch.zeros_like(self.values)
            self.values.grad = self.gradient
            start = 0
            for p in parameters:
                stop = start + p.numel()
                p.data = self.values.data[start:stop].view_as(p)
                p.grad = self.gradient[start:stop].view_as(p)
                start = stop

    def clip_(self, max_norm: float) -> Tensor:
        """Scale the gradient down to `max_norm` where it is longer; returns its norm before, a scalar."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def follow(config: TargetNetworkConfig, updates: int, target: FlatParameters, online: FlatParameters) -> None:
    """Let a target network follow its online one after an update: softly, or by a copy now and then.

    Args:
        config: says how (conf/algorithm). updates: how many there were, this one included.
    """
    if config.target_update == "soft":
        target.values.data.lerp_(online.values.data, config.target_tau)
    elif updates % config.target_period == 0:
        target.values.data.copy_(online.values.data)


def optimiser(
    train: TrainConfig, parameters: FlatParameters, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `train` names, for those parameters.

    Args:
        learning_rate: another than `train.learning_rate`.
    """
    rate = train.learning_rate if learning_rate is None else learning_rate
    if train.optimiser == "adam":
        return torch.optim.Adam([parameters.values], lr=rate, fused=True)
    return torch.optim.RMSprop([parameters.values], lr=rate, alpha=0.99, eps=1e-5)
