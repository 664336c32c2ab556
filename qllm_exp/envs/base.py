"""The environment contract: N copies of one cooperative task, stepped together, tensors in and out.

Shapes: N parallel copies (num_envs), n agents (n_agents), A actions (n_actions).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription, numbered_field


class Observation(NamedTuple):
    """What `reset` returns: the start of an episode.

    Attributes:
        obs: [N, n, obs_dim] float32, each agent's own observation.
        state: [N, state_dim] float32, the global state.
        available_actions: [N, n, A] bool, at least one True per agent.
    """

    obs: Tensor
    state: Tensor
    available_actions: Tensor


class Step(NamedTuple):
    """What `step` returns: the result of one joint action. Terminated and truncated are never merged.

    Attributes:
        obs: [N, n, obs_dim] float32, each agent's own observation.
        state: [N, state_dim] float32, the global state.
        available_actions: [N, n, A] bool, at least one True per agent.
        reward: [N] float32, the team reward.
        terminated: [N] bool, the task itself has ended: there is no value beyond this step.
        truncated: [N] bool, a time limit has cut the episode off: value targets bootstrap through it.
    """

    obs: Tensor
    state: Tensor
    available_actions: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class TeamEnv(ABC):
    """N copies of a cooperative task that start their episodes together.

    `reset` starts an episode in every copy. A copy whose episode has ended (terminated or truncated) is out of play
    until the next `reset`: what `step` returns for it is finite, has reward 0 and must not be used.
    All tensors are on `device`. Returned tensors belong to the caller and are never written to afterwards.

    Attributes:
        num_envs: number of copies, N.
        n_agents: number of agents, n.
        n_actions: number of actions of an agent, A.
        obs_dim: length of an agent's observation.
        episode_limit: steps after which an episode is truncated.
        device: device of all tensors.
        layout: names every column of the global state.
        task: describes the goal, the reward and the actions in words.
        state_kind: value of `env.state` that gives this state.
    """

    state_kind: ClassVar[str] = "features"
    num_envs: int
    n_agents: int
    n_actions: int
    obs_dim: int
    episode_limit: int
    device: torch.device
    layout: StateLayout
    task: TaskDescription

    @property
    def state_dim(self) -> int:
        """Length of the global state."""
        return self.layout.size

    @abstractmethod
    def reset(self) -> Observation:
        """Start a new episode in every copy."""

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Apply one joint action in every copy.

        Args:
            actions: [N, n] int64, an available action of each agent.
        """

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the environment's own random numbers: equal seeds give equal episodes from the next `reset` on."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that determines the episodes after the next `reset`: tensors, numbers, strings, and dicts of them."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a `state_dict` as if never interrupted. Takes effect at the next `reset`.

        Args:
            saved: what `state_dict` returned.
        """

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """Names of the columns of an agent's observation, in column order. `env.state=observations` makes the state of them.

        Without a method of its own, an environment has numbered columns without bounds.

        Args:
            agent: index of the agent, from 0; it is the entity of all fields.

        Raises:
            UserError: the observations of this environment cannot be a global state.
        """
        return [numbered_field("agent", agent, "observation", self.obs_dim)]

    def episode_metrics(self) -> dict[str, Tensor]:
        """Additional metrics of the episodes that have just ended, e.g. {'win': [N]}. Read before the next `reset`."""
        return {}

    def close(self) -> None:  # noqa: B027 - most environments hold nothing that needs closing
        """Release processes and files. Safe to call twice."""
