"""QFIX (Baisero et al., arXiv 2505.10484): a thin layer that lets VDN or QMIX represent all functions that satisfy IGM.

    A(s, u) = Q_fixee(q(u), s) - Q_fixee(q(u_max), s) <= 0,   u_max = the agents' argmaxes            VDN or QMIX, the fixee
    QFIX:    Q_tot(s, u) = w(s, u) A(s, u) + b(s),                                w > 0
    Q+FIX:   Q_tot(s, u) = Q_fixee(q(u), s) + w(s, u) A(s, u) + b(s),             w > -1, no gradient through this A
    sum, mono: the fixee is VDN or QMIX;   lin: VDN, w A = sum_i w_i(s, u) A_i(s, u) with one weight per agent

w and b are networks with one hidden layer; w = |x - m| + m for the network's output x and the bound m = 0 or -1. Q+FIX is QFIX
with w + 1 in place of w and Q_fixee(q(u_max), s) + b(s) in place of b(s), so both represent the same functions. Its agents learn
as if Q_tot were the fixee, which the authors found to be stable; they measured Q+FIX only.

To represent a game is not yet to learn it. Trained on all joint actions of a one-step game
(tests/unit/mixers/test_matrix_games.py), Q+FIX finds the best joint action of the climbing game. In the game of QTRAN's paper
sum and mono stay at safe joint actions, and lin finds the best one with some learning rates (0.003, not 0.006 or 0.01). QFIX
stays at safe ones in both games: its agents learn nothing where w is 0.

`forward` is Q_fixee + b(s). For Q+FIX it takes each individual Q as the agent's best, and w has no part in the value of that
joint action; credit is that of the fixee.

An update takes 0.8 (lbf) to 0.9 times (mpe) as long as QMIX's with 0.9 times its floating-point operations (variant sum,
tests/bench/updates.py).

Deviations from the publication:
1. w and b read the state, as in all published experiments. With the agents' histories in addition, the publication proves that
   all functions that satisfy IGM can be represented; with the state alone, all those of the state.
2. In its experiments with Overcooked the publication also anneals what the layer adds; here nothing is annealed.

Where `train=paper` differs from the authors' code for StarCraft (a fork of PyMARL2), whose settings it has:
1. The authors' loss is half the squared error, so their gradient clip of 10 is `train.grad_norm_clip=20` here.
2. Evaluations have 100 episodes every 50,000 steps, those of the public code 32 every 10,000.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.mixers.qmix import Qmix
from qllm_exp.mixers.vdn import Vdn
from qllm_exp.networks.layers import mlp


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=qfix`; conf/mixer/qfix.yaml explains them."""

    name: str = "qfix"
    variant: str = schema.one_of("sum", "mono", "lin")
    additive: bool = True
    embed: int = schema.number(32, 1)
    hypernet: int = schema.number(64, 1)


_EPSILON = 1e-10  # keeps w above 0 in QFIX; in Q+FIX, rounding may leave w at -1


class Qfix(Mixer):
    """VDN or QMIX, with weighted advantages.

    Args:
        n_agents: Number of individual Qs n.
        n_actions: Actions A of each agent.
        state_dim: Size of the global state.
        variant: 'sum' (VDN), 'mono' (QMIX), or 'lin' (VDN, with one weight per agent).
        additive: Whether this is Q+FIX rather than QFIX.
        embed: Width of QMIX's mixing network.
        hypernet: Hidden width of w and b, and of QMIX's hypernetworks.
    """

    monotone = True
    learns = True

    def __init__(
        self,
        n_agents: int,
        n_actions: int,
        state_dim: int,
        variant: str = "sum",
        additive: bool = True,
        embed: int = 32,
        hypernet: int = 64,
    ) -> None:
        super().__init__()
        self.variant, self.additive = variant, additive
        self.fixee: Mixer = Qmix(n_agents, state_dim, embed, hypernet) if variant == "mono" else Vdn()
        self.weights = mlp(state_dim + n_agents * n_actions, hypernet, n_agents if variant == "lin" else 1)
        self.bias = mlp(state_dim, hypernet, 1)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_fixee + b [...] of individual Qs [..., n] in states [..., state_dim]."""
        q_tot: Tensor = self.fixee(agent_qs, state) + self.bias(state).squeeze(-1)
        return q_tot

    def q_tot(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_tot [...] of a joint action."""
        fixee_q = self.fixee(joint.qs, state)
        if self.variant == "lin":
            advantage = joint.qs - joint.best_qs
        else:
            advantage = (fixee_q - self.fixee(joint.best_qs, state)).unsqueeze(-1)
        if self.additive:
            advantage = advantage.detach()
        q_tot: Tensor = (self.weight(joint, state) * advantage).sum(-1) + self.bias(state).squeeze(-1)
        return fixee_q + q_tot if self.additive else q_tot

    def weight(self, joint: JointAction, state: Tensor) -> Tensor:
        """Weights w of the advantage of a joint action, [..., 1], or [..., n] of the variant 'lin'."""
        bound = -1.0 if self.additive else 0.0
        outputs: Tensor = self.weights(torch.cat([state, joint.one_hot(joint.actions)], -1))
        return (outputs - bound).abs() + (bound + _EPSILON)


def make(config: Config, env: TeamEnv) -> Qfix:
    """Build the mixer of `mixer=qfix`."""
    return Qfix(
        env.n_agents,
        env.n_actions,
        env.state_dim,
        variant=config.variant,
        additive=config.additive,
        embed=config.embed,
        hypernet=config.hypernet,
    )
