"""Tasks of the VMAS simulator (vmas 1.5, Bettini et al. 2022): its version of the multi-agent particle environments
(simple_spread, simple_tag, ...) and its own scenarios, all copies of a task in one batch of tensors.

VMAS's MPE is not PettingZoo's: other physics and other rewards, so their returns must never be compared.
In scenarios with two sides the opposing side is scripted (`_mpe_sides`) and the team's rewards are the only ones used.

The scenario and its world are driven directly, not through `vmas.Environment`: the same calls in the same order, so
the same numbers, without that class's checks, information dictionaries and swaps of three random streams at each step.
In the MPE scenarios the world itself is advanced by `_mpe_physics`, with the same arithmetic.
"""

import ast
import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import vmas
from torch import Tensor
from vmas.simulator.dynamics.holonomic import Holonomic
from vmas.simulator.scenario import BaseScenario

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import TaskDescription
from qllm_exp.envs.mpe.physics import CirclePhysics, is_plain
from qllm_exp.envs.mpe.random import RandomStream
from qllm_exp.envs.mpe.sides import SIDES
from qllm_exp.envs.mpe.state import WorldState
from qllm_exp.envs.mpe.texts import TEXTS
from qllm_exp.errors import UserError, choose, nearest


@dataclass
class Config(schema.EnvConfig):
    name: str = "mpe"
    task: str = "simple_spread"
    options: dict[str, Any] = field(default_factory=dict)


_AXES = (("left", "right"), ("down", "up"))


def tasks() -> list[str]:
    """Every MPE scenario and every scenario of VMAS itself, the default first."""
    return list(TEXTS)


def check(config: Any) -> None:
    """UserError when there is no such task, or it has no such option."""
    choose("env.task", config.task, tasks())
    known = _options_of(config.task) if config.options else ()
    for name in config.options:
        if name not in known:
            allowed = f"Allowed: {', '.join(known)}." if known else "It takes none."
            close = nearest(str(name), known)
            raise UserError(f"env.options.{name} is no option of the VMAS scenario {config.task!r}.{close} {allowed}")


def make(config: Any, num_envs: int, seed: int, device: torch.device) -> TeamEnv:
    """`num_envs` copies of the scenario `config.task`; `config.options` are the scenario's own arguments."""
    check(config)
    return MpeEnv(config, num_envs, seed, device)


class MpeEnv(TeamEnv):
    """One VMAS scenario as a task for its team.

    Actions: one discrete set for all agents. Action a is the physical action a // W with the word a % W, where W is the
    number of words that the scenario knows if an agent of the team can speak, else 1. `available_actions` marks what an
    agent can do: all words only if it speaks (else word 0), all physical actions only if it can move (else no push).
    Observations that are narrower than the widest are filled with zeros at the end.
    """

    def __init__(self, config: Any, num_envs: int, seed: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_limit = config.episode_limit
        self._mean_reward = config.reward == "mean"
        self._stream = RandomStream(seed, device)
        with self._stream:
            self._scenario = _build_scenario(config.task, num_envs, device, dict(config.options))
            self._scenario.env_reset_world_at(env_index=None)
        self._world = self._scenario.world
        plain = config.task in vmas.mpe_scenarios and is_plain(self._world)
        self._advance = CirclePhysics(self._world).step if plain else self._world.step
        self._players = self._world.policy_agents
        self._sides = SIDES.get(config.task)
        self._team = [one for one in self._players if self._sides is None or one.adversary == self._sides.team_flag]
        self._opponents = [one for one in self._players if one not in self._team]
        _check_team(config.task, self._team)
        self.n_agents = len(self._team)

        self._controls = [_control_table(agent) for agent in self._team]
        speaks = [not agent.silent and self._world.dim_c > 0 for agent in self._team]
        self._n_words = self._world.dim_c if any(speaks) else 1
        self._words = torch.eye(max(self._world.dim_c, 1), device=device)
        self._available = self._what_each_can_do(speaks)
        self.n_actions = self._available.shape[-1]
        with self._stream:
            self.obs_dim = max(self._own_view(agent).shape[-1] for agent in self._team)

        self._state = WorldState(config.task, self._scenario, self._team)
        self.layout = self._state.layout
        self.task = self._describe(config)
        self._steps = 0
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.seed(seed)

    def reset(self) -> Observation:
        with self._stream:
            self._scenario.env_reset_world_at(env_index=None)
            obs = self._observe()
        self._steps = 0
        self._ended = torch.zeros_like(self._ended)
        return Observation(obs, self._state.read(), self._mask())

    def step(self, actions: Tensor) -> Step:
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
        return Step(obs, self._state.read(), self._mask(), reward * playing, terminated, timed_out)

    def seed(self, seed: int) -> None:
        self._stream.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._stream.load_state_dict(saved)

    def _set_actions(self, actions: Tensor) -> None:
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
                message = self._words.index_select(0, word)
                if agent.c_noise > 0:
                    message = message + torch.randn_like(message) * agent.c_noise
                agent.action.c = message

    def _reward(self) -> Tensor:
        # All players are asked, and in VMAS's order: many scenarios compute every reward when the first one is asked,
        # and road_traffic writes over what it returned before, hence the clone.
        by_agent = {agent: self._scenario.reward(agent).clone() for agent in self._players}
        stacked = torch.stack([by_agent[agent].reshape(self.num_envs) for agent in self._team])
        return stacked.mean(0) if self._mean_reward else stacked.sum(0)

    def _observe(self) -> Tensor:
        views = [self._own_view(agent) for agent in self._team]
        if any(view.shape[-1] != self.obs_dim for view in views):
            views = [torch.nn.functional.pad(view, (0, self.obs_dim - view.shape[-1])) for view in views]
        return torch.stack(views, dim=1)

    def _own_view(self, agent: Any) -> Tensor:
        seen = self._scenario.observation(agent)
        if isinstance(seen, dict):
            seen = torch.cat([part.flatten(1) for part in seen.values()], dim=-1)
        view: Tensor = seen.to(torch.float32)
        return view

    def _mask(self) -> Tensor:
        return self._available.repeat(self.num_envs, 1, 1)

    def _what_each_can_do(self, speaks: Sequence[bool]) -> Tensor:
        pairs = zip(self._team, self._controls, strict=True)
        physical = [len(table) if _can_act(agent) else 1 for agent, table in pairs]
        available = torch.zeros(self.n_agents, max(physical), self._n_words, dtype=torch.bool, device=self.device)
        for index, count in enumerate(physical):
            available[index, :count, : self._n_words if speaks[index] else 1] = True
        return available.flatten(1)

    def _describe(self, config: Any) -> TaskDescription:
        text = TEXTS[config.task]
        words = "the mean" if self._mean_reward else "the sum"
        names = "; ".join(
            f"{kind} {index} is {name!r}"
            for kind, given in self._state.names.items()
            for index, name in enumerate(given)
        )
        ends = type(self._scenario).done is not BaseScenario.done
        return TaskDescription(
            env="mpe",
            task=config.task,
            goal=f"{text.goal} {self._sides.words + ' ' if self._sides else ''}In the words of VMAS: {names}.",
            reward=f"Each step: {words} of what VMAS gives the {self.n_agents} agents of the team. {text.reward}",
            actions=self._action_labels(),
            episode=f"{'When the scenario ends it, at the latest a' if ends else 'A'}fter {self.episode_limit} steps.",
            n_agents=self.n_agents,
        )

    def _action_labels(self) -> tuple[str, ...]:
        most = max(range(self.n_agents), key=lambda index: len(self._controls[index]))
        physical = self.n_actions // self._n_words
        labels = [_control_label(self._team[most], row) for row in self._controls[most][:physical].tolist()]
        if self._n_words == 1:
            return tuple(labels)
        return tuple(f"{label}, say word {word}" for label in labels for word in range(self._n_words))


def _build_scenario(task: str, num_envs: int, device: torch.device, options: dict[str, Any]) -> Any:
    scenario = _module_of(task).Scenario()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scenario.env_make_world(num_envs, device, **options)
    except Exception as error:
        if not options:
            raise
        raise UserError(f"VMAS does not build {task!r} with env.options={options}: {error!r}") from error
    return scenario


def _module_of(task: str) -> Any:
    return importlib.import_module(f"vmas.scenarios.{'mpe.' if task in vmas.mpe_scenarios else ''}{task}")


@functools.cache
def _options_of(task: str) -> tuple[str, ...]:
    return tuple(_options_read(inspect.getsource(_module_of(task))))


def _options_read(source: str) -> list[str]:
    """The names that a scenario takes out of its keyword arguments, in the order of its source."""
    names = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name("kwargs"), attr="pop" | "get"), args=[ast.Constant(str(name)), *_]
            ):
                names.append(name)
    return list(dict.fromkeys(names))


def _check_team(task: str, team: Sequence[Any]) -> None:
    if not team:
        raise UserError(f"env.task={task!r} with these env.options has no agent to control: every agent is scripted.")
    colours = {colour for agent in team for colour in ("agent_blue", "agent_red") if agent.name.startswith(colour)}
    if len(colours) == 2:
        raise UserError(
            "env.task='football' is cooperative only if one side is scripted: type env.options.ai_red_agents=true."
        )


def _can_act(agent: Any) -> bool:
    """False for an agent that only forces could move and that cannot be moved."""
    return agent.movable or type(agent.dynamics) is not Holonomic


def _control_table(agent: Any) -> Tensor:
    """The control vector of each physical action, [prod(nvec), controls], with the index that VMAS gives it.

    VMAS spaces the values of an axis evenly over [-range, range] and puts the middle one first if their number is odd.
    """
    limits = agent.action.u_range_tensor
    levels = []
    for axis, count in enumerate(agent.discrete_action_nvec):
        order = list(range(count))
        if count % 2:
            order.insert(0, order.pop(count // 2))
        place = torch.tensor(order, device=limits.device)
        levels.append(place / (count - 1) * (2 * limits[axis]) - limits[axis])
    combined = torch.cartesian_prod(*levels).reshape(math.prod(agent.discrete_action_nvec), len(levels))
    multiplier: Tensor = agent.action.u_multiplier_tensor
    return combined * multiplier


def _control_label(agent: Any, control: Sequence[float]) -> str:
    if type(agent.dynamics) is not Holonomic or len(control) != 2:
        return f"{type(agent.dynamics).__name__} controls ({', '.join(f'{value:g}' for value in control)})"
    pushes = [names[value > 0] for names, value in zip(_AXES, control, strict=True) if value]
    return f"push {' and '.join(pushes)}" if pushes else "no push"
