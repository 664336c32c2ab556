"""QPLEX (Wang et al., arXiv 2008.01062): duplex dueling, which can represent every function that satisfies IGM and no other.

    V_i = max_a Q_i(a),   A_i = Q_i(a_i) - V_i <= 0                                     individual
    V_i' = w_i(s) V_i + b_i(s),   A_i' = w_i(s) A_i,   w_i > 0                          transformed
    Q_tot(s, a) = sum_i V_i' + sum_i lambda_i(s, a) A_i',   lambda_i > 0                joint
    lambda_i(s, a) = sum_k |key_k(s)| sigmoid(agents_{k,i}(s)) sigmoid(action_{k,i}(s, a))      K kernels

V_i' + lambda_i A_i' is computed as Q_i' + (lambda_i - 1) A_i', with no gradient through A_i' there, as published: the agents
learn as if lambda were 1. `forward` is the value of a joint action in which every Q that it is given is the best of its agent.

Deviations from the publication:
1. w_i and b_i are networks of the state with one hidden layer, as in the public code's plain variant ("dmaq"). The variant that the
   paper's StarCraft results come from ("dmaq_qatten") makes w_i by attention over the agents' parts of the state.

An update takes 6 to 7 times as long as QMIX's (one CPU core): lambda is made by 3 K networks of three layers, as published.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Joint, Mixer
from qllm_exp.networks.dense import ParallelLinear

_ABOVE_ZERO = 1e-10  # what keeps w and lambda positive where a network's output is 0


class Qplex(Mixer):
    """The transformation and the advantages' weights.

    Args:
        n_agents, n_actions, state_dim: sizes of the inputs.
        kernels: K. hypernet: hidden width of the networks of w and b. adv_hypernet: width W of both hidden layers in a kernel.
    """

    monotone = True
    learns = True

    def __init__(
        self,
        n_agents: int,
        n_actions: int,
        state_dim: int,
        kernels: int = 10,
        hypernet: int = 64,
        adv_hypernet: int = 64,
    ) -> None:
        super().__init__()
        self.kernels, self.width = kernels, adv_hypernet
        self.scale_shift_hidden = nn.Linear(state_dim, 2 * hypernet)
        self.scale_shift = ParallelLinear(2, hypernet, n_agents)
        self.of_state = nn.Linear(state_dim, 2 * kernels * adv_hypernet)  # first layers of keys, then of agents
        self.of_action = nn.Linear(state_dim + n_agents * n_actions, kernels * adv_hypernet)
        self.second = ParallelLinear(3 * kernels, adv_hypernet, adv_hypernet)
        self.key = ParallelLinear(kernels, adv_hypernet, 1)
        self.agents_action = ParallelLinear(2 * kernels, adv_hypernet, n_agents)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        scale, shift = self._scale_shift(state)
        return (scale * agent_qs + shift).sum(-1)

    def value(self, joint: Joint, state: Tensor) -> Tensor:
        scale, shift = self._scale_shift(state)
        advantage = (scale * (joint.qs - joint.best_qs)).detach()
        return (scale * joint.qs + shift + (self.importance(joint, state) - 1) * advantage).sum(-1)

    def importance(self, joint: Joint, state: Tensor) -> Tensor:
        """lambda [..., n] of the agents' advantages in a joint action."""
        state_action = torch.cat([state, joint.one_hot(joint.actions)], -1)
        first = [self.of_state(state), self.of_action(state_action)]  # [..., 2 K W], [..., K W]
        hidden = F.relu(self.second(F.relu(torch.cat([x.unflatten(-1, (-1, self.width)) for x in first], -2))))
        key = self.key(hidden[..., : self.kernels, :]).abs() + _ABOVE_ZERO
        agents, action = self.agents_action(hidden[..., self.kernels :, :]).sigmoid().chunk(2, -2)
        importance: Tensor = (key * agents * action).sum(-2)
        return importance

    def _scale_shift(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """w and b, [..., n] each."""
        hidden = self.scale_shift_hidden(state).relu().unflatten(-1, (2, -1))
        scale, shift = self.scale_shift(hidden).unbind(-2)
        return scale.abs() + _ABOVE_ZERO, shift


def make(config: Any, env: TeamEnv, tfcaf: Any) -> Qplex:
    c = config
    return Qplex(env.n_agents, env.n_actions, env.state_dim, c.kernels, c.hypernet, c.adv_hypernet)
