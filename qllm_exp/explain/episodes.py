"""Episodes of a task, and what their states tell: who is where, what happened, and which steps to show.

An episode is recorded for pictures; the states visited in many are for statistics. Both are played by any policy.
Places and events are read from the state's layout alone, so that this knows no single environment.

Shapes: T steps, N copies of the environment, n agents, A actions, S columns of the state.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout

# obs [N, n, obs_dim], state [N, S], available actions [N, n, A] -> actions [N, n]. A policy with a memory has a method
# `reset()` as well, which is called before each episode.
Act = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Episode:
    """One episode, on the CPU. Credit, action and reward of step t belong to states[t]; states[T] is the last one seen.

    Attributes:
        states: [T + 1, S]. actions: [T, n]. rewards: [T], the team's.
        ended: 'terminated', 'truncated', or 'cut' where the recording stopped before the episode did.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    ended: str


@dataclass(frozen=True)
class Entity:
    """Something with a place. path: [T + 1, 2] (x, y), nan where it is not there; level: [T + 1], None if it has none."""

    kind: str
    index: int | None
    unit: str
    path: Tensor
    level: Tensor | None


def random_policy(seed: int, device: torch.device) -> Act:
    """Each agent takes any of its available actions with equal probability."""
    generator = torch.Generator(device).manual_seed(seed)

    def act(obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        draw = torch.rand(available.shape, generator=generator, device=device)
        return torch.where(available, draw, -1.0).argmax(-1)

    return act


def play(env: TeamEnv, act: Act, steps: int) -> Episode:
    """A new episode of the environment's first copy, recorded until it ends or for `steps` steps, at least 1."""
    _start(act)
    obs, state, available = env.reset()
    states, actions, rewards, ended = [state[0]], [], [], "cut"
    for _ in range(steps):
        chosen = act(obs, state, available)
        step = env.step(chosen)
        obs, state, available = step.obs, step.state, step.available_actions
        actions.append(chosen[0])
        rewards.append(step.reward[0])
        states.append(state[0])
        if bool(step.terminated[0]) or bool(step.truncated[0]):
            ended = "terminated" if bool(step.terminated[0]) else "truncated"
            break
    return Episode(torch.stack(states).cpu(), torch.stack(actions).cpu(), torch.stack(rewards).cpu(), ended)


def visited(env: TeamEnv, act: Act, count: int) -> Tensor:
    """[count, S] states in which `act` chose its actions, from as many new episodes in all copies as that takes."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        _start(act)
        obs, state, available = env.reset()
        playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        while bool(playing.any()) and sum(map(len, found)) < count:
            found.append(state[playing])
            step = env.step(act(obs, state, available))
            obs, state, available = step.obs, step.state, step.available_actions
            playing = playing & ~(step.terminated | step.truncated)
    return torch.cat(found)[:count]


def _start(act: Act) -> None:
    reset = getattr(act, "reset", None)
    if reset is not None:
        reset()


def entities(layout: StateLayout, states: Tensor) -> list[Entity]:
    """Everything whose place the states [T + 1, S] tell: by a field 'position', or by an agent's 'offset_to_KIND_INDEX'."""
    found: dict[tuple[str, int | None], Entity] = {}
    for one in layout:
        if one.name == "position" and one.components == ("x", "y"):
            there = states[:, one.columns]
            gone = torch.zeros_like(there, dtype=torch.bool)
            for value in one.special:
                gone |= there == value
            levels = [
                states[:, f.start] for f in layout if (f.entity, f.index, f.name) == (one.entity, one.index, "level")
            ]
            path = there.masked_fill(gone.all(1, keepdim=True), float("nan"))
            found[one.entity, one.index] = Entity(one.entity, one.index, one.unit, path, levels[0] if levels else None)
    for one in layout:
        told = re.fullmatch(r"offset_to_(\w+)_(\d+)", one.name)
        if told and (one.entity, one.index) in found:
            kind, index = told[1], int(told[2])
            path = found[one.entity, one.index].path + states[:, one.columns]
            found.setdefault((kind, index), Entity(kind, index, one.unit, path, None))
    return list(found.values())


def events(layout: StateLayout, states: Tensor) -> dict[str, list[int]]:
    """The steps at which a column of the states [T + 1, S] takes one of its field's special values, by what it means.

    Step t is the one that leads from states[t] to states[t + 1]. Of yes and no, only yes counts. Actions are no events.
    """
    found: dict[str, set[int]] = {}
    for one in layout:
        if one.name == "last_action":
            continue
        for place, component in enumerate(one.components):
            column = states[:, one.start + place]
            for value, meaning in one.special.items():
                if meaning == "no":
                    continue
                hit = (column[1:] == value) & (column[:-1] != value)
                owner = one.entity if one.index is None else f"{one.entity} {one.index}"
                label = f"{owner}: {meaning.partition(',')[0]}"
                if meaning == "yes":
                    label = one.label if len(one.components) == 1 else f"{one.name}: {component}"
                if bool(hit.any()):
                    found.setdefault(label.replace("_", " "), set()).update(hit.nonzero().flatten().tolist())
    return {label: sorted(steps) for label, steps in found.items()}


def moments(episode: Episode, credit: Tensor, count: int = 4) -> list[int]:
    """At most `count` telling steps, in order and apart from each other: by turns the one whose reward differs most from
    the median and the one with the largest change of credit [T, n] since the step before; then the farthest from those.
    """
    length = len(episode.rewards)
    steps = torch.arange(length)
    unusual = (episode.rewards - episode.rewards.median()).abs()
    change = torch.zeros(length)
    change[1:] = (credit[1:] - credit[:-1]).abs().sum(1)
    chosen: list[int] = []
    for turn in range(3 * count):
        away = torch.stack([torch.full((length,), length), *((steps - one).abs() for one in chosen)]).amin(0)
        score = (unusual, change)[turn % 2] if turn < 2 * count else away.float()
        score = torch.where(away > length // 10, score, 0.0)
        if len(chosen) < count and float(score.amax()) > 0:
            chosen.append(int(score.argmax()))
    return sorted(chosen)
