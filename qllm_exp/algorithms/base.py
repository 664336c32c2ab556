"""The contract of an algorithm: how a team acts, and how it learns from a batch of episodes.

Shapes: T steps, B episodes of a batch, N copies of the environment, n agents, A actions.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from qllm_exp.mixers.base import Mixer


class EpisodeBatch(NamedTuple):
    """Whole episodes, time first, padded to the longest. Padding is marked by `mask`."""

    obs: Tensor  # [T + 1, B, n, obs_dim]
    state: Tensor  # [T + 1, B, state_dim]
    available_actions: Tensor  # [T + 1, B, n, A] bool
    actions: Tensor  # [T, B, n] int64
    reward: Tensor  # [T, B]
    terminated: Tensor  # [T, B] bool; an episode that ends without it was truncated
    mask: Tensor  # [T, B] bool, the steps that happened

    @property
    def steps(self) -> int:
        return self.actions.shape[0]


class Experience(Protocol):
    """The episodes that an algorithm can learn from."""

    def sample(self, count: int) -> EpisodeBatch:
        """So many different ones of those that are kept, uniformly."""

    def latest(self, count: int) -> EpisodeBatch:
        """The last ones, the oldest of them first."""

    def fresh(self) -> EpisodeBatch:
        """Those of the last rollout, one from each copy of the environment, played with the parameters as they are now."""


class Algorithm(ABC):
    """A team of agents that learns.

    Attributes:
        mixer: what makes Q_tot of the agents' Qs; None for an algorithm without one.
        on_policy: it learns from the last rollout alone: `update` is called once after each, and nothing older is kept.
    """

    mixer: Mixer | None = None
    on_policy: ClassVar[bool] = False

    @abstractmethod
    def initial_memory(self, num_envs: int) -> Any:
        """What the agents carry from step to step, at the start of an episode."""

    @abstractmethod
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> Any:
        """Choose a joint action.

        Args:
            obs: [N, n, obs_dim]; available_actions: [N, n, A] bool.
            memory: from `initial_memory` or the call before.
            env_step: environment steps so far, for exploration schedules; None to evaluate.
            generator: where every random number comes from.

        Returns:
            actions [N, n] int64, and the memory for the next step.
        """

    def observe(self, rewards: Tensor, mask: Tensor) -> None:  # noqa: B027 - most algorithms have no use for it
        """See the rewards [T, N] of a new rollout, where mask [T, N] is True; called once for every rollout."""

    @abstractmethod
    def update(self, experience: Experience) -> dict[str, Tensor]:
        """One update. Returns figures to log, as tensors without gradient (no host synchronisation)."""

    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor | None:
        """Individual Qs [T, B, n] of the actions taken along episodes, without gradient; None where agents have no Qs.

        Args:
            obs: [T + 1, B, n, obs_dim]; actions: [T, B, n] int64. All begin at the start of an episode.
        """
        return None

    @abstractmethod
    def exploration(self, env_step: int) -> dict[str, float]:
        """Figures of the exploration schedule, to log."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that learning has changed: networks, targets, optimiser, statistics."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`."""

    @abstractmethod
    def policy_state_dict(self) -> dict[str, Tensor]:
        """The parameters that decide how the team acts, and the mixer's, named 'mixer....', copied."""

    @abstractmethod
    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Act and mix with these parameters from now on. RuntimeError or KeyError where they are not of these networks."""

    @abstractmethod
    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters of each part, e.g. {'agent': 31000, 'mixer': 9000}."""


def linear(start: float, end: float, steps: int, env_step: int) -> float:
    """`start` at the first step, `end` from `steps` on, and on the line between them before."""
    return start + (end - start) * min(1.0, env_step / steps)
