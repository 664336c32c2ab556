"""The contract of a mixer: individual Qs and the global state in, Q_tot out.

Shapes: [...] any leading dimensions, n agents, A actions.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class JointAction:
    """A joint action in a batch of states, with the individual Qs of all actions.

    Attributes:
        all_qs: Individual Qs of every action, [..., n, A].
        available: Available actions, [..., n, A] bool.
        actions: The joint action, [..., n] int64.
    """

    def __init__(self, all_qs: Tensor, available: Tensor, actions: Tensor) -> None:
        self.all_qs, self.available, self.actions = all_qs, available, actions

    @cached_property
    def qs(self) -> Tensor:
        """Individual Qs [..., n] of the joint action."""
        return self.all_qs.gather(-1, self.actions.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def best_actions(self) -> Tensor:
        """Available action with the highest individual Q of each agent, [..., n] int64."""
        return greedy_actions(self.all_qs, self.available)

    @cached_property
    def best_qs(self) -> Tensor:
        """Individual Qs [..., n] of `best_actions`."""
        return self.all_qs.gather(-1, self.best_actions.unsqueeze(-1)).squeeze(-1)

    def one_hot(self, actions: Tensor) -> Tensor:
        """One-hot encoding [..., n * A] of joint actions [..., n] int64, in the dtype of the Qs."""
        return F.one_hot(actions, self.all_qs.shape[-1]).flatten(-2).to(self.all_qs.dtype)


def greedy_actions(all_qs: Tensor, available: Tensor) -> Tensor:
    """Available action with the highest Q of each agent.

    Args:
        all_qs: [..., n, A].
        available: [..., n, A] bool.

    Returns:
        [..., n] int64.
    """
    return torch.where(available, all_qs.detach(), -torch.inf).max(-1).indices  # faster than argmax on a CPU


class Mixer(nn.Module, ABC):
    """Combines the individual Qs of a joint action into Q_tot.

    Most mixers implement `forward` only. The other methods are hooks for publications that need more: `q_tot` for mixers that
    use the joint action itself, `auxiliary_loss` for additional losses, `unrestricted` with `td_weight` for weighted QMIX.

    Attributes:
        monotone: Whether dQ_tot/dQ_i >= 0 in `forward` for every agent and state.
        learns: Whether the mixer has trainable parameters.
        per_agent: Whether the output keeps the agent axis: nothing is mixed, and each agent learns from the team reward alone.
        unrestricted: A second mixer that can represent any joint value and mixes the Qs of a separate set of agents. If there
            is one, it provides the TD targets, and this mixer's errors are weighted by `td_weight`. The attribute name is part
            of saved policies.
    """

    monotone: bool
    learns: ClassVar[bool]
    per_agent: ClassVar[bool] = False
    unrestricted: "Mixer | None"

    def __init__(self) -> None:
        super().__init__()
        # An instance attribute: a class attribute would hide the submodule that a mixer assigns.
        self.unrestricted = None

    @abstractmethod
    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot from individual Qs, of each time step apart: what the leading dimensions are differs from call to call.

        Args:
            agent_qs: Individual Qs of the chosen actions, [..., n].
            state: Global state, [..., state_dim] with the same leading dimensions.

        Returns:
            [...], or [..., n] if `per_agent`.
        """

    def q_tot(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_tot of a joint action; override it if the individual Qs of the joint action are not enough.

        Args:
            joint: The joint action.
            state: Global state, [..., state_dim].

        Returns:
            [...], or [..., n] if `per_agent`.
        """
        q_tot: Tensor = self(joint.qs, state)
        return q_tot

    def auxiliary_loss(self, joint: JointAction, state: Tensor, q_tot: Tensor) -> Tensor | None:
        """Additional loss of each step, besides the squared TD error.

        Args:
            joint: The joint action.
            state: Global state, [..., state_dim].
            q_tot: Value that the method `q_tot` returned for the joint action, [...].

        Returns:
            [...], or None if there is no additional loss.
        """
        return None

    def td_weight(self, joint: JointAction, q_tot: Tensor, target: Tensor, best_q_tot: Tensor) -> Tensor:
        """Weights of the squared TD errors of a mixer that has an `unrestricted` mixer.

        Args:
            joint: The joint action.
            q_tot: This mixer's value of the joint action, [...].
            target: TD targets, [...].
            best_q_tot: The unrestricted mixer's value of the joint action that is best by the individual Qs, [...].

        Returns:
            [...].
        """
        raise NotImplementedError


def mixing_loss(
    mixer: Mixer, joint: JointAction, central: JointAction | None, state: Tensor, q_tot: Tensor, target: Tensor
) -> Tensor:
    """Loss of each step: the squared TD error of Q_tot and the additional losses of the mixer.

    Args:
        mixer: The mixer.
        joint: A joint action.
        central: The same joint action with the Qs that the unrestricted mixer mixes; None if there is none.
        state: Global state, [..., state_dim].
        q_tot: Value that `mixer.q_tot` returned, [...], or [..., n] of a mixer that is `per_agent`.
        target: TD targets, of the shape of `q_tot`.

    Returns:
        [...], or [..., n].
    """
    loss = (q_tot - target).square()
    if mixer.unrestricted is not None and central is not None:
        central_q_tot = mixer.unrestricted.q_tot(central, state)
        with torch.no_grad():
            central_best = JointAction(central.all_qs, joint.available, joint.best_actions)
            best_q_tot = mixer.unrestricted.q_tot(central_best, state)
            weight = mixer.td_weight(joint, q_tot, target, best_q_tot)
        loss = weight * loss + (central_q_tot - target).square()
    auxiliary_loss = mixer.auxiliary_loss(joint, state, q_tot)
    return loss if auxiliary_loss is None else loss + auxiliary_loss
