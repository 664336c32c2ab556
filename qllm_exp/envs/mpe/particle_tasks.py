"""The tasks of env.rules=pettingzoo: simple_spread, simple_adversary and simple_tag of mpe2 1.1.1.

Who observes what, and the rewards, are as in the package. Of its options, those of partial sight, curricula, early endings and
continuous actions are left to `env=pettingzoo`.

Shapes: N copies, n agents of the team, o opponents, M = n + o moving bodies (the team first), L landmarks.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.mpe.particles import ZERO, Kind, ParticleEnv
from qllm_exp.envs.mpe.sides import FLEE_STEPS, GUESS_DESCRIPTION, guess_landmark, miss_distance, nearest_chaser
from qllm_exp.envs.mpe.texts import TEXTS, UNBOUNDED_TAG
from qllm_exp.envs.pettingzoo.layout import spread_reward
from qllm_exp.errors import UserError, nearest

_TOUCH_REWARD = 10.0

# The package's names of the options of each task, with their defaults.
_OPTIONS: dict[str, dict[str, Any]] = {
    "simple_spread": {"N": 3, "local_ratio": 0.5},
    "simple_adversary": {"N": 2},
    "simple_tag": {"num_good": 1, "num_adversaries": 3, "num_obstacles": 2},
}
# Type and bounds of an option, where they are not a whole number from 1.
_ALLOWED: dict[str, tuple[Any, int, float]] = {"local_ratio": (int | float, 0, 1), "num_obstacles": (int, 0, math.inf)}


def check(config: Any) -> None:
    """Raise UserError if these rules do not have the task of `config`, or one of its options."""
    if config.task not in _OPTIONS:
        raise UserError(
            f"env.task={config.task!r} is not a task of env.rules=pettingzoo.{nearest(config.task, _OPTIONS)} Allowed: "
            f"{', '.join(_OPTIONS)}. Other tasks: env.rules=vmas, or env=pettingzoo env.task=mpe2.MODULE."
        )
    read_options(config.task, config.options)


def read_options(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all options of a task.

    Args:
        task: one of the tasks of these rules.
        options: the options that differ from their defaults.

    Raises:
        UserError: the task has no such option, or its value is not allowed.
    """
    values = _OPTIONS[task]
    for name, value in options.items():
        if name not in values:
            hint = " Use env.episode_limit." if name == "max_cycles" else nearest(str(name), values)
            raise UserError(
                f"env.options.{name} is not an option of {task!r} with env.rules=pettingzoo.{hint} Allowed: {', '.join(values)}."
            )
        kind, low, high = _ALLOWED.get(name, (int, 1, math.inf))
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            numbers = f"numbers from {low} to {high}" if name == "local_ratio" else f"whole numbers from {low}"
            raise UserError(f"env.options.{name}={value!r} is not allowed. Allowed: {numbers}.")
    return values | dict(options)


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """Build `num_envs` copies of the task of `config`, which `check` accepts."""
    return _TASKS[config.task](config, num_envs, seed, device)


class SimpleSpread(ParticleEnv):
    """N agents are to cover N landmarks; each sees all bodies. Nobody can speak, but the messages of the others are observed."""

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        options = read_options(config.task, config.options)
        n, self._local_ratio = options["N"], options["local_ratio"]
        team, landmarks = Kind(n, 0.15, True), Kind(n, 0.05, False)
        super().__init__(config, team, Kind(0, 0.0, False), landmarks, num_envs, seed, device)

    def observed(self, agent: int) -> list[tuple[int, int, str]]:
        others = (other for other in range(self.n_agents) if other != agent)
        return self.motion_and_places(agent) + [(ZERO, ZERO, f"message_of_{self.body_name(other)}") for other in others]

    def team_reward(self) -> Tensor:
        uncovered = self.distances(self.landmark_positions()).amin(1).sum(1)
        overlaps = (self.distances(self.positions) < self.reach[:, : self.n_agents]).sum((1, 2)) - self.n_agents
        reward: Tensor = -(1 - self._local_ratio) * self.n_agents * uncovered - self._local_ratio * overlaps
        return reward

    def texts(self) -> tuple[str, str, str]:
        return TEXTS["simple_spread"].goal, "", spread_reward(self._local_ratio)


class SimpleAdversary(ParticleEnv):
    """N agents who know which of N landmarks is the goal, and one scripted adversary who does not. No body collides."""

    has_goal = True

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        n = read_options(config.task, config.options)["N"]
        team, opponents, landmarks = Kind(n, 0.15, False), Kind(1, 0.15, False), Kind(n, 0.08, False)
        super().__init__(config, team, opponents, landmarks, num_envs, seed, device)

    def observed(self, agent: int) -> list[tuple[int, int, str]]:
        goal = (self.vectors.goal, self.vectors.position(agent), "offset_to_goal")
        adversary_first = (self.n_agents, *range(self.n_agents))
        return [goal, *self.landmark_views(agent), *self.body_views(agent, adversary_first)]

    def opponent_actions(self) -> Tensor:
        target = guess_landmark(self.landmark_positions(), self.positions[:, : self.n_agents])
        return miss_distance(self.rest_points(1.0), target).argmin(-1)

    def team_reward(self) -> Tensor:
        distance = self.distances(self.goal_position()).squeeze(2)  # [N, M]
        return self.n_agents * (distance[:, self.n_agents] - distance[:, : self.n_agents].amin(1))

    def texts(self) -> tuple[str, str, str]:
        text = TEXTS["simple_adversary"]
        return text.goal, GUESS_DESCRIPTION, text.reward


class SimpleTag(ParticleEnv):
    """Chasers are to catch scripted prey that are faster, among obstacles."""

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        options = read_options(config.task, config.options)
        team = Kind(options["num_adversaries"], 0.075, True, 3.0, 1.0)
        prey = Kind(options["num_good"], 0.05, True, 4.0, 1.3)
        obstacles = Kind(options["num_obstacles"], 0.2, True, start=0.9)
        super().__init__(config, team, prey, obstacles, num_envs, seed, device)

    def observed(self, agent: int) -> list[tuple[int, int, str]]:
        prey = range(self.n_agents, self.vectors.n_moving)
        speeds = [(self.vectors.velocity(body), ZERO, f"velocity_of_{self.body_name(body)}") for body in prey]
        return self.motion_and_places(agent) + speeds

    def opponent_actions(self) -> Tensor:
        points = self.rest_points(FLEE_STEPS)
        return (nearest_chaser(points, self.positions[:, : self.n_agents]) - _prey_penalty(points)).argmax(-1)

    def team_reward(self) -> Tensor:
        n, moving = self.n_agents, self.vectors.n_moving
        touches = self.distances(self.positions)[:, :n, n:] < self.reach[:n, n:moving]
        return n * _TOUCH_REWARD * touches.sum((1, 2))

    def texts(self) -> tuple[str, str, str]:
        script = (
            f"The prey is part of the environment: it pushes where, {FLEE_STEPS:.0f} steps of thrust ahead, the distance of its "
            "nearest chaser minus its penalty for leaving would be largest. The penalty of a coordinate x is 10 (|x| - 0.9) from "
            "0.9 on, and exp(2 |x| - 2), at most 10, from 1 on."
        )
        return UNBOUNDED_TAG.goal, script, UNBOUNDED_TAG.reward


def _prey_penalty(points: Tensor) -> Tensor:
    """Penalty with which the package keeps prey from leaving, at the places [..., 2]."""
    x = points.abs()
    outside = torch.exp(2 * x - 2).clamp(max=10.0)
    return torch.where(x < 1.0, (x - 0.9).clamp(min=0.0) * 10, outside).sum(-1)


_TASKS: dict[str, type[SimpleSpread | SimpleAdversary | SimpleTag]] = {
    "simple_spread": SimpleSpread,
    "simple_adversary": SimpleAdversary,
    "simple_tag": SimpleTag,
}
