"""QMIX (Rashid et al., arXiv 1803.11485): a two-layer mixing network with non-negative, state-dependent weights.

    Q_tot = |W2(s)|^T elu(|W1(s)|^T q + b1(s)) + b2(s)

W1 and W2 come from hypernetworks with one hidden layer (or none). b1 is linear in the state; b2 has one hidden layer. The
absolute values ensure dQ_tot/dQ_i >= 0.

Deviations from the publication:
1. The hypernetworks of W1 and W2 have one hidden layer, as in the authors' later code (PyMARL's `hypernet_layers: 2`). With
   `mixer.hypernet=0` they are linear, as in the publication.
2. Agents do not observe their last action; with `algorithm.last_action=true` they do, as in the publication.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=qmix`; conf/mixer/qmix.yaml explains them."""

    name: str = "qmix"
    embed: int = schema.number(32, 1)
    hypernet: int = schema.number(64, 0)


class Qmix(Mixer):
    """The monotone mixing network.

    Args:
        n_agents: Number of individual Qs n.
        state_dim: Size of the global state.
        embed: Width E of the mixing network.
        hypernet: Hidden width of the two weight hypernetworks; 0 makes them linear.
    """

    monotone = True
    learns = True

    def __init__(self, n_agents: int, state_dim: int, embed: int = 32, hypernet: int = 64) -> None:
        super().__init__()
        self.n_agents, self.embed, self.hypernet = n_agents, embed, hypernet
        # All layers that read the state are one product: hidden layers of both weight networks, b1, hidden layer of b2.
        weight_parts = (hypernet, hypernet) if hypernet else (n_agents * embed, embed)
        self.parts = (*weight_parts, embed, embed)
        self.from_state = nn.Linear(state_dim, sum(self.parts))
        if hypernet:
            self.weights1 = nn.Linear(hypernet, n_agents * embed)
            self.weights2 = nn.Linear(hypernet, embed)
        self.bias2 = nn.Linear(embed, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot [...] of individual Qs [..., n] in states [..., state_dim]."""
        w1, w2, b1, b2 = self.from_state(state).split(self.parts, -1)
        if self.hypernet:
            w1, w2 = self.weights1(F.relu(w1)), self.weights2(F.relu(w2))
        w1 = w1.abs().unflatten(-1, (self.n_agents, self.embed))
        hidden = F.elu((agent_qs.unsqueeze(-1) * w1).sum(-2) + b1)
        q_tot: Tensor = torch.linalg.vecdot(hidden, w2.abs()) + self.bias2(F.relu(b2)).squeeze(-1)
        return q_tot


def make(config: Config, env: TeamEnv) -> Qmix:
    """Build the mixer of `mixer=qmix`."""
    return Qmix(env.n_agents, env.state_dim, config.embed, config.hypernet)
