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
2. lambda_i has ten kernels of networks with three layers, as the public code has for the matrix games (qplex.yaml); for
   StarCraft it has four [kernels=4], of one layer.

An update takes 3.3 times (mpe) to 4.4 times (lbf) as long as QMIX's where actions are random, 2.3 to 2.6 times where almost all
are what the agents think best (one CPU core, tests/bench/updates.py): lambda is made by 3 K networks of three layers,
which on lbf need 2.9 times the arithmetic of the agents' own networks. On a CPU it is made only of the steps in which
some agent does not do its best; A' is 0 in the others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.networks.layers import ParallelLinear, side_by_side


@dataclass
class Config(schema.MixerConfig):
    name: str = "qplex"
    kernels: int = schema.number(10, 1)
    hypernet: int = schema.number(64, 1)
    adv_hypernet: int = schema.number(64, 1)


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
        self.kernels, self.hypernet, self.width = kernels, hypernet, adv_hypernet
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

    def value(self, joint: JointAction, state: Tensor) -> Tensor:
        scale, shift = self._scale_shift(state)
        q_tot = (scale * joint.qs + shift).sum(-1)
        lost = (joint.actions != joint.best_actions).any(-1).flatten()
        # Where no agent loses anything lambda is not asked for; on a GPU it is, or the host would wait to hear where that is.
        rows = lost.nonzero().squeeze(-1) if lost.is_cpu else torch.arange(len(lost), device=lost.device)
        advantage = (scale * (joint.qs - joint.best_qs)).detach().flatten(0, -2)[rows]
        importance = self.importance(state.flatten(0, -2)[rows], joint.one_hot(joint.actions).flatten(0, -2)[rows])
        return q_tot.flatten().index_add(0, rows, ((importance - 1) * advantage).sum(-1)).view_as(q_tot)

    def importance(self, state: Tensor, actions: Tensor) -> Tensor:
        """lambda [R, n] of the agents' advantages.

        Args:
            state: [R, S]. actions: [R, n * A] joint actions, one-hot.
        """
        of_state, of_both = state.T, torch.cat([state, actions], -1).T
        key = self.key(self._hidden(of_state, self.of_state, 0, 0)).abs() + _ABOVE_ZERO  # [K, 1, R]
        agents = self.agents_action(self._hidden(of_state, self.of_state, self.kernels, self.kernels)).sigmoid()
        action = self.agents_action(self._hidden(of_both, self.of_action, 0, 2 * self.kernels), self.kernels).sigmoid()
        importance: Tensor = (key * agents * action).sum(0)  # of [K, n, R]
        return importance.T

    def _hidden(self, x: Tensor, layer: nn.Linear, first: int, second: int) -> Tensor:
        """Second hidden layers [K, W, R] of K networks of x [I, R], whose layers begin at `first` of `layer` and at `second`."""
        hidden: Tensor = self.second(side_by_side(layer, x, self.width, first, self.kernels).relu_(), second)
        return hidden.relu_()

    def _scale_shift(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """w and b, [..., n] each."""
        hidden = side_by_side(self.scale_shift_hidden, state.flatten(0, -2).T, self.hypernet).relu_()
        scale, shift = self.scale_shift(hidden).mT.unflatten(1, state.shape[:-1])
        return scale.abs() + _ABOVE_ZERO, shift


def make(config: Config, env: TeamEnv) -> Qplex:
    c = config
    return Qplex(env.n_agents, env.n_actions, env.state_dim, c.kernels, c.hypernet, c.adv_hypernet)
