"""All parameters of some modules in one contiguous tensor, so that optimiser, clipping and target updates are one operation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

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
        parameters: The modules' own parameters, which are views of `values`.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.parameters = parameters = [p for module in modules for p in module.parameters()]
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

    def gradient_step(self, optimiser: torch.optim.Optimizer, max_norm: float) -> Tensor:
        """Scale the gradient to a norm of at most `max_norm`, and take a step of the optimiser.

        Args:
            optimiser: An optimiser of `values`, such as that of `make_optimiser`.
            max_norm: Maximum norm.

        Returns:
            Norm before clipping, a scalar.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if not norm.is_cpu:  # reading the norm would synchronise
            self.gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        elif not (scale := max_norm / (float(norm) + 1e-6)) >= 1:  # NaN reaches all parameters, as on a GPU
            self.gradient.mul_(scale)
        state, options = optimiser.state[self.values], optimiser.param_groups[0]
        if norm.is_cpu and state and _is_plain_adam(optimiser, options):
            _adam_step(self.values, self.gradient, state, options)
        else:
            optimiser.step()
        return norm


def _is_plain_adam(optimiser: torch.optim.Optimizer, options: dict[str, Any]) -> bool:
    """Whether an optimiser is Adam with fused steps and none of its variations: AdamW, which is a subclass, is not."""
    if type(optimiser) is not torch.optim.Adam:
        return False
    return bool(options["fused"]) and not any(options[name] for name in ("weight_decay", "amsgrad", "maximize"))


@torch.no_grad()
def _adam_step(values: nn.Parameter, gradient: Tensor, state: dict[str, Any], options: dict[str, Any]) -> None:
    """Take the step of torch's fused Adam without the hooks of `step`, which cost more than the step itself.

    Args:
        values: Parameters, [P].
        gradient: Their gradient, [P].
        state: Their state in the optimiser.
        options: The optimiser's options.
    """
    adam(
        [values],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
        fused=True,
        amsgrad=False,
        beta1=options["betas"][0],
        beta2=options["betas"][1],
        lr=options["lr"],
        weight_decay=0.0,
        eps=options["eps"],
        maximize=False,
    )


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
    if train.optimiser == "radam":
        return torch.optim.RAdam([parameters.values], lr=rate)
    return torch.optim.RMSprop([parameters.values], lr=rate, alpha=0.99, eps=1e-5)
