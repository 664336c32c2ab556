"""Any PettingZoo parallel environment with discrete actions, by the name of its module, e.g. mpe2.simple_spread_v3.

The copies run one after the other in this process. PettingZoo's MPE (the package mpe2) is another simulation than
VMAS's, with other rewards: never compare the returns of `env=pettingzoo` and `env=mpe`.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.pettingzoo.layout import describe, state_layout
from qllm_exp.errors import UserError, nearest


@dataclass
class Config(schema.EnvConfig):
    name: str = "pettingzoo"
    task: str = "mpe2.simple_spread_v3"
    options: dict[str, Any] = field(default_factory=dict)
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 8, "cuda": 8}


def tasks() -> list[str]:
    """The environments of mpe2 in which all agents are on one side; every other parallel environment works by name."""
    return [
        "mpe2.simple_spread_v3",
        "mpe2.simple_reference_v3",
        "mpe2.simple_speaker_listener_v4",
        "mpe2.simple_line_v1",
        "mpe2.simple_formation_v1",
    ]


def check(config: Any) -> None:
    """UserError when there is no such environment, or its package is not installed."""
    _constructor(config.task)


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """`num_envs` copies of `config.task`, 'package.module' with a `parallel_env()`, which gets `config.options`."""
    return PettingzooEnv(config, _constructor(config.task), num_envs, seed, device)


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """What a copy's `reset(seed=...)` is given for its episode number `episode`, counted from 0 since `seed`."""
    return int(np.random.SeedSequence((seed, copy, episode)).generate_state(1)[0]) >> 1


class PettingzooEnv(TeamEnv):
    """Copies of a parallel environment as a task for all its agents together.

    Agents: in the order of `possible_agents`. One that has died sees zeros and can only choose action 0, which goes
    nowhere. Actions and observations: as many as the agent with the most has; an agent's own fewer ones come first.
    Observations are flattened. Action masks are read from an observation's or an info's 'action_mask'.
    State: the environment's own `state()`, or, where it has none, the agents' observations one after the other.
    Terminated: all agents have terminated; truncated: the episode ended otherwise, or reached `episode_limit`.
    """

    def __init__(
        self, config: Any, constructor: Callable[..., Any], num_envs: int, seed: int, device: torch.device
    ) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self._seed, self._episode, self._steps = seed, 0, 0
        options = dict(config.options)
        try:
            self._copies = [constructor(**options) for _ in range(num_envs)]
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"env.task={config.task!r} does not start with env.options={options}: {error}") from error
        first = self._copies[0]
        self._agents = list(first.possible_agents)
        self._index = {name: index for index, name in enumerate(self._agents)}
        self.n_agents = len(self._agents)
        self._reward_scale = 1.0 / self.n_agents if config.reward == "mean" else 1.0

        spaces = [first.action_space(name) for name in self._agents]
        for name, space in zip(self._agents, spaces, strict=True):
            _check_discrete(config.task, name, space)
        self._own_actions = [int(space.n) for space in spaces]
        self._first_action = [int(space.start) for space in spaces]
        self.n_actions = max(self._own_actions)
        boxes = [_observation_box(config.task, name, first.observation_space(name)) for name in self._agents]
        self._widths = [int(np.prod(box.shape)) for box in boxes]
        self.obs_dim = max(self._widths)

        shape = (num_envs, self.n_agents)
        self._obs = np.zeros((*shape, self.obs_dim), np.float32)
        self._available = np.zeros((*shape, self.n_actions), np.bool_)
        self._alive = np.zeros(shape, np.bool_)
        self._agent_terminated = np.zeros(shape, np.bool_)
        self._playing = np.zeros(num_envs, np.bool_)

        self._write(0, *first.reset(seed=episode_seed(seed, 0, 0)))
        self._own_state = _own_state(first)
        views = self._views(0)
        probe = np.concatenate(views) if self._own_state is None else self._own_state(first)
        self._states = np.zeros((num_envs, probe.size), np.float32)
        self.layout = state_layout(config.task, options, first, boxes, views, probe)
        self.task = describe(config, first, self.n_agents, self.n_actions)

    def reset(self) -> Observation:
        for copy, env in enumerate(self._copies):
            self._write(copy, *env.reset(seed=episode_seed(self._seed, copy, self._episode)))
            self._write_state(copy)
        self._agent_terminated[:] = False
        self._playing[:] = True
        self._episode += 1
        self._steps = 0
        return Observation(self._give(self._obs), self._give(self._states), self._give(self._available))

    def step(self, actions: Tensor) -> Step:
        self._steps += 1
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        chosen = actions.tolist()
        for copy in np.flatnonzero(self._playing):
            reward[copy], terminated[copy], over = self._step_copy(int(copy), chosen[copy])
            truncated[copy] = (over or self._steps >= self.episode_limit) and not terminated[copy]
        self._playing &= ~(terminated | truncated)
        return Step(
            self._give(self._obs),
            self._give(self._states),
            self._give(self._available),
            self._give(reward),
            self._give(terminated),
            self._give(truncated),
        )

    def seed(self, seed: int) -> None:
        self._seed, self._episode = seed, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "episode": self._episode}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._seed, self._episode = saved["seed"], saved["episode"]

    def close(self) -> None:
        for env in self._copies:
            env.close()
        self._copies = []

    def _step_copy(self, copy: int, actions: list[int]) -> tuple[float, bool, bool]:
        """Step one copy: the team's reward, whether all its agents have terminated, whether none is left."""
        env = self._copies[copy]
        living = np.flatnonzero(self._alive[copy])
        obs, rewards, terminations, truncations, infos = env.step(
            {self._agents[agent]: actions[agent] + self._first_action[agent] for agent in living}
        )
        for name, flag in terminations.items():
            self._agent_terminated[copy, self._index[name]] |= bool(flag)
        done = {name for ended in (terminations, truncations) for name, flag in ended.items() if flag}
        left = {name: seen for name, seen in obs.items() if name not in done}
        over = not left
        # What the last living agents saw at the end is kept: a value target bootstraps from it through a time limit.
        self._write(copy, obs if over else left, infos)
        self._write_state(copy)
        return self._reward_scale * sum(rewards.values()), bool(self._agent_terminated[copy].all()), over

    def _write(self, copy: int, obs: dict[str, Any], infos: dict[str, Any]) -> None:
        """Put what the living agents see, and can do, into the buffers; the others are dead."""
        self._obs[copy] = 0.0
        self._available[copy] = False
        self._available[copy, :, 0] = True
        self._alive[copy] = False
        for name, seen in obs.items():
            agent = self._index[name]
            self._alive[copy, agent] = True
            mask = infos.get(name, {}).get("action_mask")
            if isinstance(seen, dict):
                seen, mask = seen["observation"], seen.get("action_mask", mask)
            self._obs[copy, agent, : self._widths[agent]] = np.asarray(seen, np.float32).reshape(-1)
            own = self._available[copy, agent, : self._own_actions[agent]]
            if mask is None:
                own[:] = True
            elif np.any(mask):
                own[:] = np.asarray(mask, np.bool_)

    def _write_state(self, copy: int) -> None:
        own = self._own_state
        self._states[copy] = np.concatenate(self._views(copy)) if own is None else own(self._copies[copy])

    def _views(self, copy: int) -> list[npt.NDArray[np.float32]]:
        return [self._obs[copy, agent, :width] for agent, width in enumerate(self._widths)]

    def _give(self, buffer: npt.NDArray[Any]) -> Tensor:
        """A copy of the buffer, as a tensor on the device."""
        return torch.tensor(buffer, device=self.device)


def _constructor(task: str) -> Callable[..., Any]:
    """`parallel_env` of the module that `task` names, or a UserError that says what is missing and how to get it."""
    package, _, name = task.rpartition(".")
    if not package:
        raise UserError(f"env.task={task!r} is no PACKAGE.MODULE. Type, for example, env.task={tasks()[0]}.")
    try:
        module = importlib.import_module(task)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == task and importlib.util.find_spec(package) is not None:
            known = [entry.name for entry in pkgutil.iter_modules(importlib.import_module(package).__path__)]
            known = [entry for entry in known if "_v" in entry]
            raise UserError(
                f"env.task={task!r}: the package {package!r} has no module {name!r}.{nearest(name, known)} "
                f"It has: {', '.join(known)}."
            ) from error
        top = missing.partition(".")[0]
        raise UserError(
            f"env.task={task!r} needs the Python package {top!r}, which is not installed. Type: pip install {top} "
            '(environments of PettingZoo itself: pip install "pettingzoo[all]").'
        ) from error
    except ImportError as error:  # such as pettingzoo.mpe's, which says where its environments are now
        said = str(error).strip().replace("\n", " ")
        raise UserError(
            f"env.task={task!r} cannot be imported: {said} Type, for example, env.task={tasks()[0]}."
        ) from error
    if not hasattr(module, "parallel_env"):
        raise UserError(f"env.task={task!r}: the module has no parallel_env(); only parallel environments can be used.")
    constructor: Callable[..., Any] = module.parallel_env
    return constructor


def _check_discrete(task: str, agent: str, space: Any) -> None:
    # By name, so that this module needs no package of PettingZoo's when it is only asked for its tasks.
    if type(space).__name__ != "Discrete":
        raise UserError(
            f"env.task={task!r}: {agent} has the action space {space}; only Discrete ones can be used. Many have an "
            "option for it, e.g. env.options.continuous_actions=false."
        )


def _observation_box(task: str, agent: str, space: Any) -> Any:
    """The Box that an agent sees, taken out of a dictionary with an action mask if need be."""
    if type(space).__name__ == "Dict" and "observation" in space.spaces:
        space = space["observation"]
    if type(space).__name__ != "Box":
        raise UserError(f"env.task={task!r}: {agent} has the observation space {space}; only Box ones can be used.")
    return space


def _own_state(env: Any) -> Callable[[Any], npt.NDArray[np.float32]] | None:
    """How to read the environment's own state, flat; None if it has none."""
    try:
        env.state()
    except (NotImplementedError, AttributeError):
        return None
    return lambda copy: np.asarray(copy.state(), np.float32).reshape(-1)
