"""QPLEX (Wang et al., arXiv 2008.01062): duplex dueling, which represents exactly the functions that satisfy IGM.

    V_i = max_a Q_i(a),   A_i = Q_i(a_i) - V_i <= 0                                     individual
    V_i' = w_i(s) V_i + b_i(s),   A_i' = w_i(s) A_i,   w_i > 0                          transformed
    Q_tot(s, a) = sum_i V_i' + sum_i lambda_i(s, a) A_i',   lambda_i > 0                joint
    lambda_i(s, a) = sum_k |key_k(s)| sigmoid(agents_{k,i}(s)) sigmoid(action_{k,i}(s, a))      K kernels

V_i' + lambda_i A_i' is computed as Q_i' + (lambda_i - 1) A_i' without gradient through A_i' in the second term, as published:
the agents learn as if lambda were 1. `forward` takes each individual Q as the agent's best and returns the value of that joint
action.

Deviations from the publication:
1. w_i and b_i are networks of the state with one hidden layer, as in the plain variant of the public code ("dmaq"). The variant
   behind the paper's StarCraft results ("dmaq_qatten") computes w_i by attention over the agents' parts of the state.
2. lambda_i has ten kernels of networks with three layers, as the public code has for the matrix games (qplex.yaml). For
   StarCraft the public code has four kernels of one layer [kernels=4].

An update takes 3.2 times (mpe) to 3.7 times (lbf) as long as QMIX's if actions are random, and 1.9 to 2.6 times if almost all
actions are greedy (one CPU core, tests/bench/updates.py). With random actions it has 2.3 to 2.8 times the floating-point
operations of QMIX's (1,359 against 585 million on mpe, 2,186 against 773 million on lbf), because lambda comes from 3 K networks
of three layers. On a CPU lambda is computed only for steps in which some agent's action is
not greedy; A' is 0 in all others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.networks.layers import ParallelLinear, grouped_linear


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=qplex`; conf/mixer/qplex.yaml explains them."""

    name: str = "qplex"
    kernels: int = schema.number(10, 1)
    hypernet: int = schema.number(64, 1)
    adv_hypernet: int = schema.number(64, 1)


_EPSILON = 1e-10  # keeps w and lambda positive where a network's output is 0


class Qplex(Mixer):
    """The transformation and the weights of the advantages.

    Args:
        n_agents: Number of individual Qs n.
        n_actions: Actions A of each agent.
        state_dim: Size of the global state S.
        kernels: Number of kernels K.
        hypernet: Hidden width of the networks of w and b.
        adv_hypernet: Width W of both hidden layers in a kernel.
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
        self.of_state = nn.Linear(state_dim, 2 * kernels * adv_hypernet)  # first layers of `key`, then of `agents`
        self.of_action = nn.Linear(state_dim + n_agents * n_actions, kernels * adv_hypernet)
        self.second = ParallelLinear(3 * kernels, adv_hypernet, adv_hypernet)
        self.key = ParallelLinear(kernels, adv_hypernet, 1)
        self.agents_action = ParallelLinear(2 * kernels, adv_hypernet, n_agents)

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot [...] of best individual Qs [..., n] in states [..., state_dim]."""
        scale, shift = self._scale_shift(state)
        return (scale * agent_qs + shift).sum(-1)

    def q_tot(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_tot [...] of a joint action, which need not be the best."""
        scale, shift = self._scale_shift(state)
        q_tot = (scale * joint.qs + shift).sum(-1)
        has_advantage = (joint.actions != joint.best_actions).any(-1).flatten()
        # A CPU computes lambda for the rows that need it. On a GPU selecting them would force a synchronisation, so all are used.
        if has_advantage.is_cpu:
            rows = has_advantage.nonzero().squeeze(-1)
        else:
            rows = torch.arange(len(has_advantage), device=has_advantage.device)
        advantage = (scale * (joint.qs - joint.best_qs)).detach().flatten(0, -2)[rows]
        importance = self.importance(state.flatten(0, -2)[rows], joint.one_hot(joint.actions).flatten(0, -2)[rows])
        return q_tot.flatten().index_add(0, rows, ((importance - 1) * advantage).sum(-1)).view_as(q_tot)

    def importance(self, state: Tensor, actions: Tensor) -> Tensor:
        """Weights lambda of the agents' advantages.

        Args:
            state: [R, S].
            actions: One-hot joint actions, [R, n * A].

        Returns:
            [R, n].
        """
        state_columns, joint_columns = state.T, torch.cat([state, actions], -1).T
        k = self.kernels
        key = self.key(self._second_hidden(state_columns, self.of_state, 0, 0)).abs() + _EPSILON  # [K, 1, R]
        agents = self.agents_action(self._second_hidden(state_columns, self.of_state, k, k)).sigmoid()
        action = self.agents_action(self._second_hidden(joint_columns, self.of_action, 0, 2 * k), k).sigmoid()
        importance: Tensor = (key * agents * action).sum(0)  # [n, R], the sum of [K, n, R]
        return importance.T

    def _second_hidden(self, x: Tensor, layer: nn.Linear, first_index: int, second_index: int) -> Tensor:
        """Second hidden layers of K networks.

        Args:
            x: Inputs [I, R].
            layer: The first hidden layers of these and other networks.
            first_index: Index of the first network's group in `layer`.
            second_index: Index of the first network's layer in `self.second`.

        Returns:
            [K, W, R].
        """
        first_hidden = grouped_linear(layer, x, self.width, first_index, self.kernels).relu_()
        second_hidden: Tensor = self.second(first_hidden, second_index)
        return second_hidden.relu_()

    def _scale_shift(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """w and b, [..., n] each."""
        hidden = grouped_linear(self.scale_shift_hidden, state.flatten(0, -2).T, self.hypernet).relu_()
        scale, shift = self.scale_shift(hidden).mT.unflatten(1, state.shape[:-1])
        return scale.abs() + _EPSILON, shift


def make(config: Config, env: TeamEnv) -> Qplex:
    """Build the mixer of `mixer=qplex`."""
    return Qplex(
        env.n_agents,
        env.n_actions,
        env.state_dim,
        kernels=config.kernels,
        hypernet=config.hypernet,
        adv_hypernet=config.adv_hypernet,
    )
