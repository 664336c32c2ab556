"""The contract of a mixer: individual Qs and the global state in, Q_tot out."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Mixer(nn.Module, ABC):
    """Combines the agents' chosen-action values into the value of the team.

    Attributes:
        monotone: dQ_tot/dQ_i >= 0 for every agent, whatever the state (IGM holds by construction).
        learns: it has parameters that training changes.
        per_agent: it does not mix; its output keeps the agent axis and each agent learns from the team reward alone.
    """

    monotone: bool
    learns: ClassVar[bool]
    per_agent: ClassVar[bool] = False

    @abstractmethod
    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot.

        Args:
            agent_qs: [..., n_agents] values of the chosen actions.
            state: [..., state_dim] global state, with the same leading dimensions.

        Returns:
            [...], or [..., n_agents] when `per_agent`.
        """
