"""Tasks of the VMAS simulator (vmas 1.5, Bettini et al. 2022), with all copies of a task in one batch of tensors.

The tasks are VMAS's version of the multi-agent particle environments (simple_spread, simple_tag, ...) and its own
scenarios. VMAS's MPE differs from PettingZoo's in physics and rewards, so their returns must never be compared;
`env.rules=pettingzoo` has PettingZoo's rules (particle_tasks.py).
In scenarios with two sides the opposing side is scripted (sides.py) and only the team's rewards are used.

The scenario and its world are driven directly and not through `vmas.Environment`. The same calls in the same order give
the same numbers, without that class's checks, information dictionaries and swaps of three random streams per step.
In the MPE scenarios physics.py advances the world, with the same arithmetic.
"""

import ast
import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import vmas
from torch import Tensor
from vmas.simulator.dynamics.holonomic import Holonomic
from vmas.simulator.scenario import BaseScenario

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, TaskDescription, numbered_field, padded_fields
from qllm_exp.envs.mpe import particle_tasks
from qllm_exp.envs.mpe.observation import observation_fields
from qllm_exp.envs.mpe.physics import CirclePhysics, is_circle_world
from qllm_exp.envs.mpe.random import RandomStream
from qllm_exp.envs.mpe.sides import SIDES
from qllm_exp.envs.mpe.state import WorldState
from qllm_exp.envs.mpe.texts import TEXTS
from qllm_exp.errors import UserError, choose, nearest
from qllm_exp.runs.versions import library_version


@dataclass
class Config(schema.EnvConfig):
    """Options of the particle environments."""

    name: str = "mpe"
    task: str = "simple_spread"
    rules: str = schema.one_of("vmas", "pettingzoo")
    options: dict[str, Any] = field(default_factory=dict)
    bundled_for: ClassVar[dict[str, Any]] = {"rules": "vmas"}


_AXES = (("left", "right"), ("down", "up"))


def tasks() -> list[str]:
    """Every scenario of VMAS, those of MPE included; the default comes first."""
    return list(TEXTS)


def check(config: Any) -> None:
    """Raise UserError if the rules do not have `config.task`, or the task does not have one of `config.options`."""
    if config.rules == "pettingzoo":
        particle_tasks.check(config)
        return
    choose("env.task", config.task, tasks())
    known = _option_names(config.task) if config.options else ()
    for name in config.options:
        if name not in known:
            allowed = f"Allowed: {', '.join(known)}." if known else "The scenario has no options."
            hint = nearest(str(name), known)
            raise UserError(
                f"env.options.{name} is not an option of the VMAS scenario {config.task!r}.{hint} {allowed}"
            )


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """Build `num_envs` copies of the scenario `config.task`; `config.options` are passed on to the scenario.

    Raises:
        UserError: see `check` and `MpeEnv`.
    """
    check(config)
    if config.rules == "pettingzoo":
        return particle_tasks.make(config, num_envs, seed, device)
    return MpeEnv(config, num_envs, seed, device)


def versions(config: Any) -> dict[str, str]:
    """The version of VMAS, unless it is not in use."""
    return {} if config.rules == "pettingzoo" else {"vmas": library_version("vmas")}


class MpeEnv(TeamEnv):
    """One VMAS scenario as a task for its team.

    Actions: one discrete set for all agents. Action a is the physical action a // W with the word a % W. W is the
    number of words of the scenario if an agent of the team can speak, else 1. Only word 0 is available to an agent that
    cannot speak, and only "no push" to an agent that cannot move.
    Observations: those narrower than the widest are padded with zeros at the end.

    Args:
        config: the options, with a task and option names that `check` accepts.
        num_envs: number of parallel copies.
        seed: seed of the scenario's random numbers.
        device: device of all tensors.

    Raises:
        UserError: VMAS rejects `config.options`, or the options leave no cooperative team.
    """

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self._mean_reward = config.reward == "mean"
        self._task = config.task
        self._stream = RandomStream(seed, device)
        with self._stream:
            self._scenario = _build_scenario(config.task, num_envs, device, dict(config.options))
            self._scenario.env_reset_world_at(env_index=None)
        self._world = self._scenario.world
        use_circle_physics = config.task in vmas.mpe_scenarios and is_circle_world(self._world)
        self._advance = CirclePhysics(self._world).step if use_circle_physics else self._world.step
        self._players = self._world.policy_agents
        self._sides = SIDES.get(config.task)
        if self._sides is None:
            self._team = list(self._players)
        else:
            self._team = [agent for agent in self._players if agent.adversary == self._sides.team_is_adversary]
        self._opponents = [agent for agent in self._players if agent not in self._team]
        _check_team(config.task, self._team)
        self.n_agents = len(self._team)

        self._controls = [_control_table(agent) for agent in self._team]
        can_speak = [not agent.silent and self._world.dim_c > 0 for agent in self._team]
        self._n_words = self._world.dim_c if any(can_speak) else 1
        self._one_hot_words = torch.eye(max(self._world.dim_c, 1), device=device)
        self._available = self._action_mask(can_speak)
        self.n_actions = self._available.shape[-1]
        with self._stream:
            self.obs_dim = max(self._observe_agent(agent).shape[-1] for agent in self._team)

        self._state = WorldState(config.task, self._scenario, self._team)
        self.layout = self._state.layout
        self.task = self._describe(config)
        self._steps = 0
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.seed(seed)

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        with self._stream:
            self._scenario.env_reset_world_at(env_index=None)
            obs = self._observe()
        self._steps = 0
        self._ended = torch.zeros_like(self._ended)
        return Observation(obs, self._state.read(), self._available_actions())

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]; scripts act for the opponents."""
        with self._stream:
            self._set_actions(actions)
            if self._sides is not None:
                self._sides.script(self._world, self._opponents, self._team)
            for agent in self._world.agents:
                self._scenario.env_process_action(agent)
            self._scenario.pre_step()
            self._advance()
            self._scenario.post_step()
            reward = self._reward()
            obs = self._observe()
            done = self._scenario.done()
        self._steps += 1
        playing = ~self._ended
        terminated = done & playing
        timed_out = playing & ~done if self._steps == self.episode_limit else torch.zeros_like(done)
        self._ended = self._ended | terminated | timed_out
        return Step(obs, self._state.read(), self._available_actions(), reward * playing, terminated, timed_out)

    def seed(self, seed: int) -> None:
        """Seed the private random stream of the scenario."""
        self._stream.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the private random stream."""
        return self._stream.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the private random stream. UserError if it was saved on another kind of device."""
        self._stream.load_state_dict(saved)

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """What simple_spread, simple_adversary and simple_tag observe by name, else numbered columns; then any padding."""
        named = list(observation_fields(self._task, self._scenario, self._team, agent))
        with self._stream:
            width = self._observe_agent(self._team[agent]).shape[-1]
        return padded_fields(agent, named or [numbered_field("agent", agent, "observation", width)], self.obs_dim)

    def _set_actions(self, actions: Tensor) -> None:
        """Turn the joint actions [N, n] into VMAS's control vectors and messages."""
        for index, agent in enumerate(self._team):
            action = actions[:, index]
            word = None
            if self._n_words > 1:
                word, action = action % self._n_words, action // self._n_words
            control = self._controls[index].index_select(0, action)
            if agent.u_noise > 0:
                control = control + torch.randn_like(control) * agent.u_noise
            agent.action.u = control
            if word is not None and not agent.silent:
                message = self._one_hot_words.index_select(0, word)
                if agent.c_noise > 0:
                    message = message + torch.randn_like(message) * agent.c_noise
                agent.action.c = message

    def _reward(self) -> Tensor:
        """The team reward, [N]."""
        # Query all players in VMAS's order: many scenarios compute every reward on the first call. The clone is needed
        # because road_traffic overwrites the tensors that it returned before.
        rewards = {agent: self._scenario.reward(agent).clone() for agent in self._players}
        stacked = torch.stack([rewards[agent].reshape(self.num_envs) for agent in self._team])
        return stacked.mean(0) if self._mean_reward else stacked.sum(0)

    def _observe(self) -> Tensor:
        """Observations of the team, [N, n, obs_dim]."""
        views = [self._observe_agent(agent) for agent in self._team]
        if any(view.shape[-1] != self.obs_dim for view in views):
            views = [torch.nn.functional.pad(view, (0, self.obs_dim - view.shape[-1])) for view in views]
        return torch.stack(views, dim=1)

    def _observe_agent(self, agent: Any) -> Tensor:
        """Observation of one agent, [N, width], not padded."""
        observation = self._scenario.observation(agent)
        if isinstance(observation, dict):
            observation = torch.cat([part.flatten(1) for part in observation.values()], dim=-1)
        view: Tensor = observation.to(torch.float32)
        return view

    def _available_actions(self) -> Tensor:
        """Mask of available actions, [N, n, A]."""
        return self._available.repeat(self.num_envs, 1, 1)

    def _action_mask(self, can_speak: Sequence[bool]) -> Tensor:
        """Mask of available actions in one copy, [n, A]; it never changes.

        Args:
            can_speak: for each agent of the team.
        """
        pairs = zip(self._team, self._controls, strict=True)
        physical = [len(table) if _can_act(agent) else 1 for agent, table in pairs]
        available = torch.zeros(self.n_agents, max(physical), self._n_words, dtype=torch.bool, device=self.device)
        for index, count in enumerate(physical):
            n_words = self._n_words if can_speak[index] else 1
            available[index, :count, :n_words] = True
        return available.flatten(1)

    def _describe(self, config: Any) -> TaskDescription:
        """Describe the task in words."""
        text = TEXTS[config.task]
        aggregate = "the mean" if self._mean_reward else "the sum"
        opponents = f"{self._sides.description} " if self._sides else ""
        names = "; ".join(
            f"{kind} {index} is {name!r}"
            for kind, entity_names in self._state.names.items()
            for index, name in enumerate(entity_names)
        )
        if type(self._scenario).done is BaseScenario.done:
            episode = f"After {self.episode_limit} steps."
        else:
            episode = f"When the scenario ends it, at the latest after {self.episode_limit} steps."
        return TaskDescription(
            env="mpe",
            task=config.task,
            goal=f"{text.goal} {opponents}In the words of VMAS: {names}.",
            reward=f"Each step: {aggregate} of what VMAS gives the {self.n_agents} agents of the team. {text.reward}",
            actions=self._action_labels(),
            episode=episode,
            n_agents=self.n_agents,
        )

    def _action_labels(self) -> tuple[str, ...]:
        """Meaning of each action, taken from the agent with the most physical actions."""
        widest = max(range(self.n_agents), key=lambda index: len(self._controls[index]))
        physical = self.n_actions // self._n_words
        labels = [_control_label(self._team[widest], row) for row in self._controls[widest][:physical].tolist()]
        if self._n_words == 1:
            return tuple(labels)
        return tuple(f"{label}, say word {word}" for label in labels for word in range(self._n_words))


def _build_scenario(task: str, num_envs: int, device: torch.device, options: dict[str, Any]) -> Any:
    """Build a VMAS scenario. UserError if it rejects the options."""
    scenario = _scenario_module(task).Scenario()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scenario.env_make_world(num_envs, device, **options)
    except Exception as error:
        if not options:
            raise
        raise UserError(f"env.task={task!r}: VMAS rejects env.options={options}: {error!r}") from error
    return scenario


def _scenario_module(task: str) -> Any:
    """The module of VMAS that defines the scenario."""
    package = "vmas.scenarios.mpe" if task in vmas.mpe_scenarios else "vmas.scenarios"
    return importlib.import_module(f"{package}.{task}")


@functools.cache
def _option_names(task: str) -> tuple[str, ...]:
    """Names of the scenario's options."""
    return tuple(_parse_option_names(inspect.getsource(_scenario_module(task))))


def _parse_option_names(source: str) -> list[str]:
    """Names that a scenario takes from its keyword arguments, in the order of its source."""
    names = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("kwargs"), attr="pop" | "get"), args=[ast.Constant(str(name)), *_]
            ):
                names.append(name)
    return list(dict.fromkeys(names))


def _check_team(task: str, team: Sequence[Any]) -> None:
    """Raise UserError if the team is empty or has players of both sides."""
    if not team:
        raise UserError(
            f"env.task={task!r} with these env.options has no agent to control: every agent is scripted. Remove the "
            "option that scripts the team."
        )
    has_blue = any(agent.name.startswith("agent_blue") for agent in team)
    has_red = any(agent.name.startswith("agent_red") for agent in team)
    if has_blue and has_red:
        raise UserError(
            "env.task='football' is cooperative only if one side is scripted. Type: env.options.ai_red_agents=true."
        )


def _can_act(agent: Any) -> bool:
    """Whether physical actions have an effect: False for an agent that only forces move and that is not movable."""
    return agent.movable or type(agent.dynamics) is not Holonomic


def _control_table(agent: Any) -> Tensor:
    """Control vector of each physical action, [prod(nvec), controls], in VMAS's order of actions.

    VMAS spaces the values of an axis evenly over [-range, range]. If their number is odd, the middle one comes first.
    """
    limits = agent.action.u_range_tensor
    levels = []
    for axis, count in enumerate(agent.discrete_action_nvec):
        order = list(range(count))
        if count % 2:
            order.insert(0, order.pop(count // 2))
        rank = torch.tensor(order, device=limits.device)
        levels.append(rank / (count - 1) * (2 * limits[axis]) - limits[axis])
    combined = torch.cartesian_prod(*levels).reshape(math.prod(agent.discrete_action_nvec), len(levels))
    multiplier: Tensor = agent.action.u_multiplier_tensor
    return combined * multiplier


def _control_label(agent: Any, control: Sequence[float]) -> str:
    """A control vector in words, e.g. 'push left and up'."""
    if type(agent.dynamics) is not Holonomic or len(control) != 2:
        return f"{type(agent.dynamics).__name__} controls ({', '.join(f'{value:g}' for value in control)})"
    pushes = [names[value > 0] for names, value in zip(_AXES, control, strict=True) if value]
    return f"push {' and '.join(pushes)}" if pushes else "no push"
