"""Weighted QMIX (Rashid et al., arXiv 2006.10800): QMIX with weighted TD errors, and targets from an unrestricted mixer.

    Q*(s, u)  = f(s, q*(u)) + V(s)       unrestricted: a feed-forward f of the state and the Qs q* of a separate set of agents
    y         = r + gamma (1 - terminated) Q*^-(s', argmax_u' Q_tot(s', u'))
    loss      = w(s, u) (Q_tot(s, u) - y)^2 + (Q*(s, u) - y)^2
    CW        : w = 1 where u = u_max or y > Q*(s, u_max), else alpha;  u_max = argmax_u Q_tot(s, u)
    OW        : w = 1 where Q_tot(s, u) < y, else alpha

Q_tot is QMIX's mixing network. The algorithm determines whether the targets are n-step or TD(lambda) returns.

Deviations from the publication:
1. Q*(s, u_max) in the weight of CW is that of the online network, as in the equation; the public code uses its target copy.

An update takes 3.0 times (mpe) to 3.6 times (lbf) as long as QMIX's (one CPU core, tests/bench/updates.py), and has 3.8 to 4.7
times its floating-point operations (2,208 against 585 million on mpe, 3,629 against 773 million on lbf). It trains the agents of
Q* in addition to those that act, and f, as wide as published, needs over three times the arithmetic of one set of agents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.qmix import Qmix
from qllm_exp.networks.layers import mlp


@dataclass
class Config(QmixConfig):
    """Options of `mixer=wqmix`; conf/mixer/wqmix.yaml explains them."""

    name: str = "wqmix"
    weighting: str = schema.one_of("cw", "ow")
    alpha: float = schema.number(0.1, 0, 1)
    unrestricted: int = schema.number(256, 1)


class FeedForward(Mixer):
    """Q*: an unrestricted function of the individual Qs and the state.

    Args:
        n_agents: Number of individual Qs n.
        state_dim: Size of the global state.
        width: Width of all hidden layers: three in f, one in V.
    """

    monotone = False
    learns = True

    def __init__(self, n_agents: int, state_dim: int, width: int) -> None:
        super().__init__()
        self.mixed = mlp(n_agents + state_dim, width, width, width, 1)
        self.of_state = mlp(state_dim, width, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q* [...] of individual Qs [..., n] in states [..., state_dim]."""
        q_tot: Tensor = self.mixed(torch.cat([agent_qs, state], -1)) + self.of_state(state)
        return q_tot.squeeze(-1)


class Wqmix(Qmix):
    """QMIX's mixing network with weighted TD errors.

    Args:
        n_agents: Number of individual Qs n.
        state_dim: Size of the global state.
        embed: As for `Qmix`.
        hypernet: As for `Qmix`.
        unrestricted: Width of the hidden layers of Q*.
        weighting: 'cw' (centrally weighted) or 'ow' (optimistically weighted).
        alpha: Weight of the errors whose weight is not 1.
    """

    def __init__(
        self,
        n_agents: int,
        state_dim: int,
        embed: int = 32,
        hypernet: int = 64,
        unrestricted: int = 256,
        weighting: str = "cw",
        alpha: float = 0.1,
    ) -> None:
        super().__init__(n_agents, state_dim, embed, hypernet)
        self.unrestricted = FeedForward(n_agents, state_dim, unrestricted)
        self.weighting, self.alpha = weighting, alpha

    def td_weight(self, joint: JointAction, q_tot: Tensor, target: Tensor, best_q_tot: Tensor) -> Tensor:
        """Weight w [...] of each squared TD error: 1 or alpha."""
        if self.weighting == "ow":
            return torch.where(q_tot < target, 1.0, self.alpha)
        is_best = (joint.actions == joint.best_actions).all(-1)
        return torch.where(is_best | (target > best_q_tot), 1.0, self.alpha)


def make(config: Config, env: TeamEnv) -> Wqmix:
    """Build the mixer of `mixer=wqmix`."""
    return Wqmix(
        env.n_agents,
        env.state_dim,
        embed=config.embed,
        hypernet=config.hypernet,
        unrestricted=config.unrestricted,
        weighting=config.weighting,
        alpha=config.alpha,
    )
