"""A mixer from outside the package: a weighted sum of the agents' Qs, with weights made from the state.

    Q_tot = n sum_i w_i(s) Q_i + b(s),   w = softmax(W s)

A module with `Config` and `make` is all that a mixer needs; mixers/base.py is what `make` promises.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.Mixer):
    """The options, with types and bounds; conf/mixer/attentive.yaml has the values."""

    name: str = "attentive"
    temperature: float = schema.number(1.0, 0.01)


class Attentive(Mixer):
    monotone = True  # the weights are above 0
    learns = True

    def __init__(self, n_agents: int, state_dim: int, temperature: float) -> None:
        super().__init__()
        self.attention, self.bias = nn.Linear(state_dim, n_agents), nn.Linear(state_dim, 1)
        self.temperature = temperature

    def forward(self, agent_qs: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        weights = agent_qs.shape[-1] * (self.attention(state) / self.temperature).softmax(-1)
        return (weights * agent_qs).sum(-1) + self.bias(state).squeeze(-1)


def make(config: Config, env: TeamEnv, tfcaf: Any) -> Attentive:
    """`env` has the sizes; `tfcaf` is a written function, for a mixer that asks for one."""
    return Attentive(env.n_agents, env.state_dim, config.temperature)
