"""A mixer from outside the package: a sum of the individual Qs, weighted by the state.

    Q_tot = n sum_i w_i(s) Q_i + b(s),   w = softmax(W s)

A mixer is a module with `Config` and `make`. The contract of what `make` returns is qllm_exp/mixers/base.py.
"""

from dataclasses import dataclass

import torch
from torch import nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    """Options with their types and bounds; conf/mixer/attentive.yaml has the defaults and documents them."""

    name: str = "attentive"
    temperature: float = schema.number(1.0, 0.01)


class Attentive(Mixer):
    """The mixer of the module's equation.

    Args:
        n_agents: Number of agents, n.
        state_dim: Columns of the global state.
        temperature: Of the softmax; higher temperatures give more equal weights.
    """

    monotone = True  # the weights are positive
    learns = True

    def __init__(self, n_agents: int, state_dim: int, temperature: float) -> None:
        super().__init__()
        self.attention, self.bias = nn.Linear(state_dim, n_agents), nn.Linear(state_dim, 1)
        self.temperature = temperature

    def forward(self, agent_qs: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Q_tot [...] from individual Qs [..., n] and the global state [..., state_dim]."""
        weights = agent_qs.shape[-1] * (self.attention(state) / self.temperature).softmax(-1)
        return (weights * agent_qs).sum(-1) + self.bias(state).squeeze(-1)


def make(config: Config, env: TeamEnv) -> Attentive:
    """Build the mixer for an environment, which has the sizes, the state layout and the task."""
    return Attentive(env.n_agents, env.state_dim, config.temperature)
