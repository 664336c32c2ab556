"""The contract of an algorithm: how a team acts, and how it learns from a batch of episodes.

Shapes: T steps, B episodes of a batch, N environment copies, n agents, A actions.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.packing import Packing


class EpisodeBatch(NamedTuple):
    """Whole episodes, time first, padded to the longest.

    Attributes:
        obs: Observations, [T + 1, B, n, obs_dim].
        state: Global states, [T + 1, B, state_dim].
        available_actions: [T + 1, B, n, A] bool.
        actions: [T, B, n] int64.
        reward: Team rewards, [T, B].
        terminated: Whether the step terminated the task, [T, B] bool. An episode that ends without it was truncated.
        mask: Whether the step is part of the episode rather than padding, [T, B] bool.
    """

    obs: Tensor
    state: Tensor
    available_actions: Tensor
    actions: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.actions.shape[0]

    def packed_steps(self) -> Packing:
        """The steps of the episodes, to leave out the padding of values [T, B, ...]."""
        return Packing(self.mask)

    def packed_observations(self) -> Packing:
        """The observations of the episodes, to leave out the padding of values [T + 1, B, ...]."""
        return Packing(F.pad(self.mask, (0, 0, 1, 0), value=True))


class Experience(Protocol):
    """The episodes that an algorithm can learn from."""

    def sample(self, count: int) -> EpisodeBatch:
        """Sample `count` distinct stored episodes uniformly."""

    def latest(self, count: int) -> EpisodeBatch:
        """The `count` most recent episodes, oldest first."""

    def last_rollout(self) -> EpisodeBatch:
        """The episodes of the last rollout, one per environment copy, collected with the current parameters."""


class Algorithm(ABC):
    """A team of agents that learns.

    Attributes:
        mixer: The mixer that computes Q_tot from the agents' Qs; None for an algorithm without mixer.
        on_policy: Whether the algorithm learns from the last rollout alone. `update` is then called once after each rollout,
            and older episodes are not stored.
    """

    mixer: Mixer | None = None
    on_policy: ClassVar[bool] = False

    @abstractmethod
    def initial_memory(self, num_envs: int) -> Any:
        """Initial recurrent state.

        Args:
            num_envs: Number of environment copies N.
        """

    @abstractmethod
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> Any:
        """Choose a joint action.

        Args:
            obs: Observations, [N, n, obs_dim].
            available_actions: [N, n, A] bool.
            memory: Recurrent state from `initial_memory` or from the previous call.
            env_step: Environment steps so far, for exploration schedules; None for evaluation.
            generator: Source of all random numbers.

        Returns:
            Actions [N, n] int64, and the recurrent state for the next step.
        """

    def observe(self, rewards: Tensor, mask: Tensor) -> None:  # noqa: B027 - most algorithms do not use it
        """Observe the rewards of a new rollout; called once per rollout.

        Args:
            rewards: [T, N].
            mask: Whether the step is part of the episode, [T, N] bool.
        """

    @abstractmethod
    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Perform one update.

        Args:
            experience: The episodes to learn from.

        Returns:
            Metrics to log: scalar tensors without gradient, so that no synchronisation with a GPU is needed.
        """

    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor | None:
        """Individual Qs of the actions taken along whole episodes, without gradient.

        Args:
            obs: Observations from the start of each episode, [T + 1, B, n, obs_dim].
            actions: [T, B, n] int64.

        Returns:
            [T, B, n], or None if the agents have no Qs.
        """
        return None

    @abstractmethod
    def exploration(self, env_step: int) -> dict[str, float]:
        """Metrics of the exploration schedule, to log.

        Args:
            env_step: Environment steps so far.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes: networks, target networks, optimisers, statistics."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""

    @abstractmethod
    def policy_state_dict(self) -> dict[str, Tensor]:
        """Copies of the agents' parameters, and of the mixer's parameters under names with the prefix 'mixer.'."""

    @abstractmethod
    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore the result of `policy_state_dict`.

        Raises:
            RuntimeError: Names or shapes do not match the agents' networks.
            KeyError: A parameter of the mixer is missing.
        """

    @abstractmethod
    def parameter_counts(self) -> dict[str, int]:
        """Number of trainable parameters of each part, e.g. {'agent': 31000, 'mixer': 9000}."""


def linear_schedule(start: float, end: float, steps: int, env_step: int) -> float:
    """Value that moves linearly from `start` at step 0 to `end` at step `steps`, and stays there."""
    return start + (end - start) * min(1.0, env_step / steps)
