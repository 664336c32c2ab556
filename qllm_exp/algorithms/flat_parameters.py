"""All parameters of some modules in one contiguous tensor, so that optimiser, clipping and target updates are one operation."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig


@dataclass
class TargetNetworkConfig(schema.AlgorithmConfig):
    """Options shared by all algorithms with target networks."""

    target_update: str = schema.one_of("soft", "periodic")
    target_tau: float = schema.number(0.01, 0, 1)
    target_period: int = schema.number(200, 1)


class FlatParameters:
    """Parameters of modules, and their gradients, as views of two contiguous tensors.

    Args:
        modules: Modules whose parameters and gradients are replaced by views.

    Attributes:
        values: All parameters in order, [P].
        gradient: Their gradients, [P].
    """

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
        """Scale the gradient in place to a norm of at most `max_norm`.

        Returns:
            Norm before clipping, a scalar.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def update_target(config: TargetNetworkConfig, updates: int, target: FlatParameters, online: FlatParameters) -> None:
    """Update a target network after an update of its online network: by a soft update, or by a periodic copy.

    Args:
        config: The `algorithm` group: kind, rate and period of target updates.
        updates: Number of updates so far, including this one.
        target: Parameters of the target network.
        online: Parameters of the online network.
    """
    if config.target_update == "soft":
        target.values.data.lerp_(online.values.data, config.target_tau)
    elif updates % config.target_period == 0:
        target.values.data.copy_(online.values.data)


def make_optimiser(
    train: TrainConfig, parameters: FlatParameters, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser that `train` selects.

    Args:
        train: The `train` group.
        parameters: The parameters to optimise.
        learning_rate: Learning rate; None for `train.learning_rate`.
    """
    rate = train.learning_rate if learning_rate is None else learning_rate
    if train.optimiser == "adam":
        return torch.optim.Adam([parameters.values], lr=rate, fused=True)
    return torch.optim.RMSprop([parameters.values], lr=rate, alpha=0.99, eps=1e-5)
