"""QTRAN-base (Son et al., arXiv 1905.05408): an unrestricted joint value, and a sum of individual Qs that has the same argmax.

    Q_jt(s, u), V(s)                                            two feed-forward networks
    L_td   = (Q_jt(s, u) - y)^2,                                y from Q_jt^- at the individual argmaxes u_max
    L_opt  = (sum_i Q_i(u_max_i) + V(s) - Q_jt(s, u_max))^2     the sum equals the joint value at the best joint action
    L_nopt = min(sum_i Q_i(u_i) + V(s) - Q_jt(s, u), 0)^2       and is an upper bound of it everywhere else
    loss   = L_td + lambda_opt L_opt + lambda_nopt L_nopt       no gradient through Q_jt in L_opt and L_nopt

`q_tot` is Q_jt. `forward` is sum_i Q_i + V(s), the value of a joint action by the individual Qs; every agent's credit is 1.

Deviations from the publication:
1. Q_jt reads the state and the one-hot joint action, V the state (`qtran_arch: coma_critic` in PyMARL). In the paper, and in the
   files of PyMARL and of EPyMARL's first version (`qtran_paper`), both read sums over the agents of encodings of their hidden
   states (and actions).
2. lambda_nopt is 1 [lambda_nopt=0.1, the value of these files, which train=paper has].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.networks.layers import mlp


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=qtran`; conf/mixer/qtran.yaml explains them."""

    name: str = "qtran"
    embed: int = schema.number(64, 1)
    lambda_opt: float = schema.number(1.0, 0)
    lambda_nopt: float = schema.number(1.0, 0)


class Qtran(Mixer):
    """The joint networks, and the losses that tie the individual Qs to them.

    Args:
        n_agents: Number of individual Qs n.
        n_actions: Actions A of each agent.
        state_dim: Size of the global state.
        embed: Width of the two hidden layers of both networks.
        lambda_opt: Weight of L_opt.
        lambda_nopt: Weight of L_nopt.
    """

    monotone = True
    learns = True

    def __init__(
        self,
        n_agents: int,
        n_actions: int,
        state_dim: int,
        embed: int = 64,
        lambda_opt: float = 1.0,
        lambda_nopt: float = 1.0,
    ) -> None:
        super().__init__()
        self.joint = mlp(state_dim + n_agents * n_actions, embed, embed, 1)
        self.of_state = mlp(state_dim, embed, embed, 1)
        self.lambda_opt, self.lambda_nopt = lambda_opt, lambda_nopt

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """sum_i Q_i + V(s) [...] of individual Qs [..., n] in states [..., state_dim]."""
        q_tot: Tensor = agent_qs.sum(-1) + self.of_state(state).squeeze(-1)
        return q_tot

    def q_tot(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_jt [...] of the joint action."""
        return self._q_jt(joint, joint.actions, state)

    def auxiliary_loss(self, joint: JointAction, state: Tensor, q_tot: Tensor) -> Tensor:
        """lambda_opt L_opt + lambda_nopt L_nopt of each step [...]."""
        with torch.no_grad():
            best_q_jt = self._q_jt(joint, joint.best_actions, state)
        best_sum = self(joint.best_qs, state)
        chosen_sum = best_sum + (joint.qs - joint.best_qs).sum(-1)
        opt_error = best_sum - best_q_jt
        nopt_error = (chosen_sum - q_tot.detach()).clamp(max=0)
        loss: Tensor = self.lambda_opt * opt_error.square() + self.lambda_nopt * nopt_error.square()
        return loss

    def _q_jt(self, joint: JointAction, actions: Tensor, state: Tensor) -> Tensor:
        """Q_jt [...] of joint actions [..., n] int64."""
        q_jt: Tensor = self.joint(torch.cat([state, joint.one_hot(actions)], -1)).squeeze(-1)
        return q_jt


def make(config: Config, env: TeamEnv) -> Qtran:
    """Build the mixer of `mixer=qtran`."""
    c = config
    return Qtran(env.n_agents, env.n_actions, env.state_dim, c.embed, c.lambda_opt, c.lambda_nopt)
