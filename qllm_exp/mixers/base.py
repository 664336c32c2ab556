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
    """A joint action in some states, and what the agents think of it.

    Attributes:
        all_qs: [..., n, A] individual Qs. available: [..., n, A] bool. actions: [..., n] int64, those of the joint action.
    """

    def __init__(self, all_qs: Tensor, available: Tensor, actions: Tensor) -> None:
        self.all_qs, self.available, self.actions = all_qs, available, actions

    @cached_property
    def qs(self) -> Tensor:
        """[..., n] individual Qs of the joint action."""
        return self.all_qs.gather(-1, self.actions.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def best_actions(self) -> Tensor:
        """[..., n] int64, the available action that each agent thinks most of."""
        return greedy(self.all_qs, self.available)

    @cached_property
    def best_qs(self) -> Tensor:
        """[..., n] individual Qs of `best_actions`."""
        return self.all_qs.gather(-1, self.best_actions.unsqueeze(-1)).squeeze(-1)

    def one_hot(self, actions: Tensor) -> Tensor:
        """[..., n * A] one-hot joint actions [..., n] int64, as numbers of the type of the Qs."""
        return F.one_hot(actions, self.all_qs.shape[-1]).flatten(-2).to(self.all_qs.dtype)


def greedy(all_qs: Tensor, available: Tensor) -> Tensor:
    """[..., n] int64, the best available action by all_qs [..., n, A]."""
    return all_qs.detach().masked_fill(~available, -torch.inf).argmax(-1)


class Mixer(nn.Module, ABC):
    """Combines the agents' values of a joint action into the value of the team.

    Most mixers are a `forward`. `value`, `constraint` and `unrestricted` with `weight` are for those whose publication has more.

    Attributes:
        monotone: dQ_tot/dQ_i >= 0 for every agent in `forward`, whatever the state.
        learns: it has parameters that training changes.
        per_agent: it does not mix; its output keeps the agent axis and each agent learns from the team reward alone.
        unrestricted: a second mixer, over Qs of agents of its own, which can represent any value and gives the targets; this
            one learns from them with `weight`.
    """

    monotone: bool
    learns: ClassVar[bool]
    per_agent: ClassVar[bool] = False
    unrestricted: "Mixer | None"

    def __init__(self) -> None:
        super().__init__()
        self.unrestricted = None  # not on the class, where it would hide the module that a mixer sets

    @abstractmethod
    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot.

        Args:
            agent_qs: [..., n_agents] values of the chosen actions.
            state: [..., state_dim] global state, with the same leading dimensions.

        Returns:
            [...], or [..., n_agents] when `per_agent`.
        """

    def value(self, joint: JointAction, state: Tensor) -> Tensor:
        """Q_tot [...] of a joint action; for a mixer that asks more of it than the individual Qs."""
        q_tot: Tensor = self(joint.qs, state)
        return q_tot

    def constraint(self, joint: JointAction, state: Tensor, value: Tensor) -> Tensor | None:
        """A further loss [...] of each step, besides the squared error of the value; None: there is none.

        Args:
            value: [...] what `value` said of the joint action.
        """
        return None

    def weight(self, joint: JointAction, q_tot: Tensor, target: Tensor, best: Tensor) -> Tensor:
        """Weights [...] of the squared errors of a mixer that learns from an `unrestricted` one.

        Args:
            q_tot: [...] this mixer's value of the joint action. target: [...] what it is to be.
            best: [...] the unrestricted value of the joint action that is best by the individual Qs.
        """
        raise NotImplementedError


def mixing_loss(
    mixer: Mixer, now: JointAction, central: JointAction | None, state: Tensor, q_tot: Tensor, target: Tensor
) -> Tensor:
    """The loss of each step: the squared error of q_tot, and what else the mixer asks for.

    Args:
        now: a joint action in states [..., state_dim]. central: the same with the Qs that an unrestricted mixer mixes.
        q_tot: [...] what `mixer.value` said of it, [..., n] of a mixer that is `per_agent`. target: alike, what it is to be.

    Returns:
        [...], or [..., n].
    """
    loss = (q_tot - target).square()
    if mixer.unrestricted is not None and central is not None:
        free = mixer.unrestricted.value(central, state)
        with torch.no_grad():
            at_best = JointAction(central.all_qs, now.available, now.best_actions)
            best = mixer.unrestricted.value(at_best, state)
            share = mixer.weight(now, q_tot, target, best)
        loss = share * loss + (free - target).square()
    constraint = mixer.constraint(now, state, q_tot)
    return loss if constraint is None else loss + constraint
