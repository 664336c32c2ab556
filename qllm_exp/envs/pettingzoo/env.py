"""PettingZoo parallel environments with discrete actions, selected by module path, e.g. mpe2.simple_spread_v3.

The copies run one after the other in this process. PettingZoo's MPE (the package mpe2) and VMAS's are different
simulations with different rewards: never compare the returns of `env=pettingzoo` and `env=mpe`, unless the latter has
`env.rules=pettingzoo`.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qllm_exp.config import registry, schema
from qllm_exp.envs.base import Observation, Step
from qllm_exp.envs.layout import StateField, padded_fields
from qllm_exp.envs.pettingzoo.checks import check_discrete, check_names, observation_box, opponents_error
from qllm_exp.envs.pettingzoo.layout import describe, observation_fields, state_layout
from qllm_exp.envs.simulator import SimulatorEnv, episode_seed
from qllm_exp.errors import UserError, nearest
from qllm_exp.runs.versions import library_version, source_hash

_ALL = "__all__"  # key of wrappers for RLlib beside the agents' names, for the end of the episode
_IMAGE_AXES = 3  # height, width and colours
_PROBE_STEPS = 25  # of random play, to see whether the agents' rewards cancel out


@dataclass
class Config(schema.EnvConfig):
    """Options of PettingZoo environments."""

    name: str = "pettingzoo"
    task: str = "mpe2.simple_spread_v3"
    options: dict[str, Any] = field(default_factory=dict)
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 8, "cuda": 8}


def tasks() -> list[str]:
    """The cooperative environments of mpe2. Any other parallel environment works by its module path."""
    return [
        "mpe2.simple_spread_v3",
        "mpe2.simple_reference_v3",
        "mpe2.simple_speaker_listener_v4",
        "mpe2.simple_line_v1",
        "mpe2.simple_formation_v1",
    ]


def check(config: Any) -> None:
    """Raise UserError if `config.task` is not a parallel environment, or its package is not installed."""
    _load_constructor(config.task)


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> "PettingzooEnv":
    """Build `num_envs` copies of the module `config.task`; `config.options` are passed on to its `parallel_env()`.

    Raises:
        UserError: see `check` and `PettingzooEnv`.
    """
    return PettingzooEnv(config, _load_constructor(config.task), num_envs, seed, device)


def versions(config: Any) -> dict[str, str]:
    """The versions of PettingZoo, of Gymnasium and of the task's package; of a module without a version a hash of its file."""
    package = config.task.partition(".")[0]
    source = registry.find_source(config.task)
    installed = {name: library_version(name) for name in ("pettingzoo", "gymnasium", package)}
    if source is not None and not installed[package]:
        return installed | {f"module {config.task}": source_hash([source], source.parent)}
    return installed


class PettingzooEnv(SimulatorEnv):
    """Copies of a parallel environment, with all its agents as one team.

    Agents: in the order of `possible_agents`. A dead agent observes zeros and has only action 0, which is ignored.
    Actions: as many as those of the agent with the most. The other agents' actions come first, the rest is unavailable.
    Masks are read from 'action_mask' in an observation or an info.
    Observations: flattened, and padded with zeros to the widest.
    State: the environment's own `state()`, or all agents' observations, concatenated, where it has none.
    Terminated: all agents have terminated. Truncated: the episode ended otherwise, or reached `episode_limit`.

    Args:
        config: the options, with a task that `check` accepts.
        constructor: `parallel_env` of the task's module.
        num_envs: number of parallel copies.
        seed: seed of the environments.
        device: device of all tensors.

    Raises:
        UserError: the environment rejects `config.options`, has spaces that are not supported, breaks the contract of
            parallel environments, or has opponents.
    """

    def __init__(
        self, config: Any, constructor: Callable[..., Any], num_envs: int, seed: int, device: torch.device
    ) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self._name = config.task
        self.seed(seed)
        self._steps = 0
        options = dict(config.options)
        try:
            self._copies = [constructor(**options) for _ in range(num_envs)]
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"env.task={config.task!r} rejects env.options={options}: {error}") from error
        first = self._copies[0]
        self._agents = list(getattr(first, "possible_agents", ()))
        if not self._agents:
            raise self._error("its list possible_agents is missing or empty")
        check_names(config.task, self._agents)
        self._index = {name: index for index, name in enumerate(self._agents)}
        self.n_agents = len(self._agents)
        self._reward_scale = 1.0 / self.n_agents if config.reward == "mean" else 1.0

        spaces = [first.action_space(name) for name in self._agents]
        for name, space in zip(self._agents, spaces, strict=True):
            check_discrete(config.task, name, space)
        self._action_counts = [int(space.n) for space in spaces]
        self._first_actions = [int(space.start) for space in spaces]
        self.n_actions = max(self._action_counts)
        boxes = [observation_box(config.task, name, first.observation_space(name)) for name in self._agents]
        self._boxes, self._options = boxes, options
        self._widths = [int(np.prod(box.shape)) for box in boxes]
        self.obs_dim = max(self._widths)

        shape = (num_envs, self.n_agents)
        self._obs = np.zeros((*shape, self.obs_dim), np.float32)
        self._available = np.zeros((*shape, self.n_actions), np.bool_)
        self._alive = np.zeros(shape, np.bool_)
        self._agent_terminated = np.zeros(shape, np.bool_)
        self._playing = np.zeros(num_envs, np.bool_)

        self._reset_copy(0, episode_seed(seed, 0, 0))
        self._check_rewards()
        self._reset_copy(0, episode_seed(seed, 0, 0))
        self._has_own_state = _has_own_state(first)
        state = self._read_state(0)
        self._states = np.zeros((num_envs, state.size), np.float32)
        self.layout = state_layout(config.task, options, first, boxes, self._views(0), state)
        self.task = describe(config, first, self.n_agents, self.n_actions)

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        for copy, seed in enumerate(self._next_seeds()):
            self._reset_copy(copy, seed)
            self._write_state(copy)
        self._agent_terminated[:] = False
        self._playing[:] = True
        self._steps = 0
        return Observation(self._tensor(self._obs), self._tensor(self._states), self._tensor(self._available))

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n] in the copies whose episode has not ended."""
        self._steps += 1
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        action_lists = actions.tolist()
        for copy in np.flatnonzero(self._playing):
            reward[copy], terminated[copy], over = self._step_copy(int(copy), action_lists[copy])
            truncated[copy] = (over or self._steps >= self.episode_limit) and not terminated[copy]
        self._playing &= ~(terminated | truncated)
        return Step(
            self._tensor(self._obs),
            self._tensor(self._states),
            self._tensor(self._available),
            self._tensor(reward),
            self._tensor(terminated),
            self._tensor(truncated),
        )

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """What simple_spread with full sight observes by name, else numbered columns; then any padding.

        Raises:
            UserError: the observations are images.
        """
        box = self._boxes[agent]
        if len(box.shape) >= _IMAGE_AXES:
            raise UserError(
                f"env.state=observations: {self._agents[agent]} of env.task={self._name!r} observes an image {list(box.shape)}, "
                "and images in a row have no columns to name. Use env.state=features, the environment's own state, or another task."
            )
        return padded_fields(agent, observation_fields(self._name, self._options, self._boxes, agent), self.obs_dim)

    def close(self) -> None:
        """Close all copies."""
        for env in self._copies:
            env.close()
        self._copies = []

    def _step_copy(self, copy: int, actions: list[int]) -> tuple[float, bool, bool]:
        """Step one copy.

        Args:
            copy: index of the copy.
            actions: an action of each agent; those of dead agents are ignored.

        Returns:
            The team reward, whether all agents have terminated, and whether no agent is left.
        """
        alive = np.flatnonzero(self._alive[copy])
        obs, rewards, terminations, truncations, infos = self._results(copy, actions)
        if terminations.get(_ALL):
            self._agent_terminated[copy, alive] = True
        for name, flag in self._by_agent(terminations).items():
            self._agent_terminated[copy, self._index[name]] |= bool(flag)
        obs = self._by_agent(obs)
        remaining = {
            name: view for name, view in obs.items() if not terminations.get(name) and not truncations.get(name)
        }
        over = not remaining or bool(terminations.get(_ALL)) or bool(truncations.get(_ALL))
        # Keep the last observations of a finished episode: value targets bootstrap from them through a time limit.
        self._write_observations(copy, obs if over else remaining, infos)
        self._write_state(copy)
        reward = sum(self._by_agent(rewards).values())
        return self._reward_scale * reward, bool(self._agent_terminated[copy].all()), over

    def _reset_copy(self, copy: int, seed: int) -> None:
        """Start an episode in one copy."""
        result = self._copies[copy].reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._error("reset() does not return a pair (observations, infos)")
        self._write_observations(copy, *result)

    def _results(self, copy: int, actions: Sequence[int]) -> tuple[dict[str, Any], ...]:
        """Step one copy: observations, rewards, terminations, truncations and infos by agent, as the environment returns them."""
        alive = [int(agent) for agent in np.flatnonzero(self._alive[copy])]
        result = self._copies[copy].step(
            {self._agents[agent]: actions[agent] + self._first_actions[agent] for agent in alive}
        )
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._error(
                "step() does not return the five dictionaries observations, rewards, terminations, truncations, infos"
            )
        return tuple({} if part is None else part for part in result)

    def _by_agent(self, part: dict[str, Any]) -> dict[str, Any]:
        """The entries of agents in a dictionary that the environment returned."""
        entries = {name: value for name, value in part.items() if name != _ALL}
        if not entries.keys() <= self._index.keys():
            unknown = next(name for name in entries if name not in self._index)
            raise self._error(f"it returns an entry for {unknown!r}, which is not in possible_agents")
        return entries

    def _check_rewards(self) -> None:
        """Raise UserError if the agents' rewards cancel out in random play of the first copy: they play against each other."""
        rng = np.random.default_rng(0)
        opposed = False
        for _ in range(min(_PROBE_STEPS, self.episode_limit)):
            actions = [int(rng.choice(np.flatnonzero(available))) for available in self._available[0]]
            obs, rewards, terminations, truncations, infos = self._results(0, actions)
            values = [float(value) for value in self._by_agent(rewards).values()]
            if abs(sum(values)) > 1e-6 * sum(map(abs, values)):
                return
            opposed |= any(values)
            self._write_observations(0, obs, infos)
            if any(terminations.values()) or any(truncations.values()) or not self._alive[0].any():
                break
        if opposed:
            raise opponents_error(self._name, "the rewards of its agents cancel out in every step")

    def _error(self, problem: str) -> UserError:
        """The error of an environment that breaks the contract of PettingZoo's parallel environments."""
        return UserError(
            f"env.task={self._name!r}: {problem}. Correct the environment; pettingzoo.test.parallel_api_test checks the contract."
        )

    def _write_observations(self, copy: int, obs: dict[str, Any], infos: dict[str, Any] | None) -> None:
        """Write observations and action masks into the buffers.

        Args:
            copy: index of the copy.
            obs: observation of each living agent; agents without one are dead.
            infos: info of each agent, which may have an 'action_mask'; None for none.
        """
        self._obs[copy] = 0.0
        self._available[copy] = False
        self._available[copy, :, 0] = True
        self._alive[copy] = False
        for name, view in self._by_agent(obs).items():
            agent = self._index[name]
            self._alive[copy, agent] = True
            mask = ((infos or {}).get(name) or {}).get("action_mask")
            if isinstance(view, dict):
                mask = view.get("action_mask", mask)
                view = view.get("observation", ())
            width, n_actions = self._widths[agent], self._action_counts[agent]
            self._obs[copy, agent, :width] = self._flat(f"the observation of {name}", view, width)
            available = self._available[copy, agent, :n_actions]
            if mask is None:
                available[:] = True
            elif np.any(mask):
                available[:] = self._flat(f"the action mask of {name}", mask, n_actions)

    def _read_state(self, copy: int) -> npt.NDArray[np.float32]:
        """Current state of a copy, [state_dim]."""
        if not self._has_own_state:
            return np.concatenate(self._views(copy))
        return self._flat("state()", self._copies[copy].state())

    def _write_state(self, copy: int) -> None:
        """Write the current state of a copy into its buffer."""
        state = self._read_state(copy)
        self._states[copy] = self._flat("state()", state, self._states.shape[1])

    def _flat(self, name: str, value: Any, size: int | None = None) -> npt.NDArray[np.float32]:
        """Return the numbers of an array that the environment returned.

        Args:
            name: of the array, for the message.
            value: the array.
            size: how many numbers its space has; None: any number.
        """
        try:
            numbers = np.asarray(value, np.float32).reshape(-1)
        except (TypeError, ValueError):
            raise self._error(f"{name} is not an array of numbers, but a {type(value).__name__}") from None
        if size is not None and numbers.size != size:
            raise self._error(f"{name} has {numbers.size:,} numbers, but its space has {size:,}")
        return numbers

    def _views(self, copy: int) -> list[npt.NDArray[np.float32]]:
        """Current observation of each agent of a copy, flat and without padding."""
        return [self._obs[copy, agent, :width] for agent, width in enumerate(self._widths)]


def _load_constructor(task: str) -> Callable[..., Any]:
    """Return `parallel_env` of the module `task`.

    Raises:
        UserError: there is no such module or function, or a package is missing; says how to install it.
    """
    package, _, name = task.rpartition(".")
    if not package:
        raise UserError(
            f"env.task={task!r} is not of the form PACKAGE.MODULE. Type, for example: env.task={tasks()[0]}."
        )
    source = registry.find_source(task)
    if source is not None and not registry.mentions(source, "parallel_env"):
        raise UserError(
            f"env.task={task!r}: the module has no parallel_env(). Only parallel environments are supported."
        )
    try:
        module = importlib.import_module(task)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == task and importlib.util.find_spec(package) is not None:
            modules = [info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__)]
            environments = [module_name for module_name in modules if "_v" in module_name]
            raise UserError(
                f"env.task={task!r}: the package {package!r} has no module {name!r}.{nearest(name, environments)} "
                f"Allowed: {', '.join(environments)}."
            ) from error
        top_package = missing.partition(".")[0]
        raise UserError(
            f"env.task={task!r} needs the Python package {top_package!r}, which is not installed. Type: pip install "
            f'{top_package} (for the environments of PettingZoo itself: pip install "pettingzoo[all]").'
        ) from error
    except ImportError as error:  # e.g. pettingzoo.mpe, whose message names the package that replaces it
        reason = str(error).strip().replace("\n", " ")
        raise UserError(
            f"env.task={task!r} cannot be imported: {reason} Type, for example: env.task={tasks()[0]}."
        ) from error
    if not hasattr(module, "parallel_env"):
        raise UserError(
            f"env.task={task!r}: the module has no parallel_env(). Only parallel environments are supported."
        )
    constructor: Callable[..., Any] = module.parallel_env
    return constructor


def _has_own_state(env: Any) -> bool:
    """Whether the environment implements `state()`."""
    try:
        env.state()
    except (NotImplementedError, AttributeError):
        return False
    return True
