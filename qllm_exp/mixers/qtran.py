"""QTRAN-base (Son et al., arXiv 1905.05408): a joint value without any restriction, and a sum that has the same argmax.

    Q_jt(s, u), V(s)                                            two feed-forward networks
    L_td   = (Q_jt(s, u) - y)^2,                                y from Q_jt^- at the individual argmaxes u_max
    L_opt  = (sum_i Q_i(u_max_i) + V(s) - Q_jt(s, u_max))^2     the sum is the joint value where every agent does its best,
    L_nopt = min(sum_i Q_i(u_i) + V(s) - Q_jt(s, u), 0)^2       and is nowhere below it
    loss   = L_td + lambda_opt L_opt + lambda_nopt L_nopt       no gradient through Q_jt in L_opt and L_nopt

`value` is Q_jt. `forward` is sum_i Q_i + V(s), what the individual Qs say of a joint action: the credit of each agent is 1.

Deviations from the publication:
1. Q_jt reads the state and the one-hot joint action, V the state ("coma_critic" in PyMARL, which EPyMARL uses). In the paper, and
   by default in PyMARL, both read sums over the agents of encodings of their hidden states (and actions).
2. lambda_nopt is 1, as in EPyMARL [lambda_nopt=0.1 is PyMARL's, which train=paper has].
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
    name: str = "qtran"
    embed: int = schema.number(64, 1)
    lambda_opt: float = schema.number(1.0, 0)
    lambda_nopt: float = schema.number(1.0, 0)


class Qtran(Mixer):
    """The joint networks and the losses that tie the agents to them.

    Args:
        n_agents, n_actions, state_dim: sizes of the inputs. embed: width of the two hidden layers of both networks.
        lambda_opt, lambda_nopt: weights of the losses.
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
        q_tot: Tensor = agent_qs.sum(-1) + self.of_state(state).squeeze(-1)
        return q_tot

    def value(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_jt of the joint action."""
        return self._joint_value(joint, joint.actions, state)

    def constraint(self, joint: JointAction, state: Tensor, value: Tensor) -> Tensor:
        """lambda_opt L_opt + lambda_nopt L_nopt."""
        with torch.no_grad():
            at_best = self._joint_value(joint, joint.best_actions, state)
        best = self(joint.best_qs, state)
        taken = best + (joint.qs - joint.best_qs).sum(-1)
        opt, nopt = best - at_best, (taken - value.detach()).clamp(max=0)
        loss: Tensor = self.lambda_opt * opt.square() + self.lambda_nopt * nopt.square()
        return loss

    def _joint_value(self, joint: JointAction, actions: Tensor, state: Tensor) -> Tensor:
        q_jt: Tensor = self.joint(torch.cat([state, joint.one_hot(actions)], -1)).squeeze(-1)
        return q_jt


def make(config: Config, env: TeamEnv) -> Qtran:
    c = config
    return Qtran(env.n_agents, env.n_actions, env.state_dim, c.embed, c.lambda_opt, c.lambda_nopt)
