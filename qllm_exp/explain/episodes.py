"""Episodes of a task, and what can be read from their states: where entities are, what happens, and which steps to show.

An episode is recorded for figures; the states visited in many episodes are for statistics. Both can be played by any policy.
Places and events are read from the state's layout only, so that this module depends on no particular environment.

Shapes: T steps, N copies of the environment, n agents, A actions, S columns of the state.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.contract import check_moment
from qllm_exp.envs.layout import StateField, StateLayout

# obs [N, n, obs_dim], state [N, S], available actions [N, n, A] -> actions [N, n]. A recurrent policy also has a method
# `reset()`, which is called before each episode.
ActFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Episode:
    """One episode, on the CPU. Credit, action and reward of step t belong to states[t]; states[T] is the final state.

    Attributes:
        states: [T + 1, S].
        actions: [T, n].
        rewards: [T] of the team.
        ended: 'terminated', 'truncated', or 'cut' if the recording stopped before the episode did.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    ended: str


@dataclass(frozen=True)
class Entity:
    """Something that has a place.

    Attributes:
        kind: 'agent', 'food', 'landmark', ...
        index: which one of its kind; None if there is only one.
        unit: of the places.
        path: [T + 1, 2] (x, y), NaN while it is absent.
        level: [T + 1]; None if it has no level.
        health: [T + 1] share of its full health; None if it has no health.
    """

    kind: str
    index: int | None
    unit: str
    path: Tensor
    level: Tensor | None
    health: Tensor | None = None


def random_policy(seed: int, device: torch.device) -> ActFunction:
    """Return a policy by which each agent takes any of its available actions with equal probability."""
    generator = torch.Generator(device).manual_seed(seed)

    def act(obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        scores = torch.rand(available.shape, generator=generator, device=device)
        return torch.where(available, scores, -1.0).argmax(-1)

    return act


def play(env: TeamEnv, act: ActFunction, steps: int) -> Episode:
    """Record a new episode of the environment's first copy.

    Args:
        env: to play in; all its copies are reset and stepped.
        act: the policy.
        steps: maximum number of steps, at least 1.
    """
    _reset_policy(act)
    start = env.reset()
    check_moment(env, start, "reset")
    obs, state, available = start
    states, actions, rewards, ended = [state[0]], [], [], "cut"
    for _ in range(steps):
        joint_actions = act(obs, state, available)
        step = env.step(joint_actions)
        obs, state, available = step.obs, step.state, step.available_actions
        actions.append(joint_actions[0])
        rewards.append(step.reward[0])
        states.append(state[0])
        if bool(step.terminated[0]) or bool(step.truncated[0]):
            ended = "terminated" if bool(step.terminated[0]) else "truncated"
            break
    return Episode(torch.stack(states).cpu(), torch.stack(actions).cpu(), torch.stack(rewards).cpu(), ended)


def visited_states(env: TeamEnv, act: ActFunction, count: int) -> Tensor:
    """Collect states in which `act` chooses actions, from as many new episodes in all copies as needed.

    Args:
        env: to play in.
        act: the policy.
        count: number of states.

    Returns:
        [count, S] states.
    """
    batches: list[Tensor] = []
    while sum(map(len, batches)) < count:
        _reset_policy(act)
        start = env.reset()
        check_moment(env, start, "reset")
        obs, state, available = start
        playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        while bool(playing.any()) and sum(map(len, batches)) < count:
            batches.append(state[playing])
            step = env.step(act(obs, state, available))
            obs, state, available = step.obs, step.state, step.available_actions
            playing = playing & ~(step.terminated | step.truncated)
    return torch.cat(batches)[:count]


def _reset_policy(act: ActFunction) -> None:
    """Reset the recurrent state of a policy that has one."""
    reset = getattr(act, "reset", None)
    if reset is not None:
        reset()


def find_entities(layout: StateLayout, states: Tensor) -> list[Entity]:
    """Return everything whose place the states contain: as a field 'position', or as an agent's 'offset_to_KIND_INDEX'.

    Args:
        layout: of the state.
        states: [T + 1, S] of an episode.
    """
    entities: dict[tuple[str, int | None], Entity] = {}
    for field in layout:
        if field.name == "position" and field.components == ("x", "y"):
            places = states[:, field.columns]
            special = torch.zeros_like(places, dtype=torch.bool)
            for value in field.special:
                special |= places == value
            path = places.masked_fill(special.all(1, keepdim=True), float("nan"))
            level, health = (_of_same_entity(layout, states, field, name) for name in ("level", "health"))
            entities[field.entity, field.index] = Entity(field.entity, field.index, field.unit, path, level, health)
    for field in layout:
        offset = re.fullmatch(r"offset_to_(\w+)_(\d+)", field.name)
        if offset and (field.entity, field.index) in entities:
            kind, index = offset[1], int(offset[2])
            path = entities[field.entity, field.index].path + states[:, field.columns]
            entities.setdefault((kind, index), Entity(kind, index, field.unit, path, None))
    return list(entities.values())


def _of_same_entity(layout: StateLayout, states: Tensor, position: StateField, name: str) -> Tensor | None:
    """[T + 1] The quantity `name` of the entity with that position; None if it has none."""
    for field in layout:
        if (field.entity, field.index, field.name) == (position.entity, position.index, name):
            return states[:, field.start]
    return None


def find_events(layout: StateLayout, states: Tensor) -> dict[str, list[int]]:
    """Return the steps at which a column takes one of its field's special values, by the meaning of the value.

    Step t leads from states[t] to states[t + 1]. Of the values yes and no, only yes counts. Actions are not events.

    Args:
        layout: of the state.
        states: [T + 1, S] of an episode.
    """
    events: dict[str, set[int]] = {}
    for field in layout:
        if field.name == "last_action":
            continue
        for offset, component in enumerate(field.components):
            column = states[:, field.start + offset]
            for value, meaning in field.special.items():
                if meaning == "no":
                    continue
                reached = (column[1:] == value) & (column[:-1] != value)
                if bool(reached.any()):
                    label = _event_label(field, component, meaning).replace("_", " ")
                    events.setdefault(label, set()).update(reached.nonzero().flatten().tolist())
    return {label: sorted(steps) for label, steps in events.items()}


def _event_label(field: StateField, component: str, meaning: str) -> str:
    """'food 0: collected'; for the value yes, the name of the field or of its component."""
    if meaning == "yes":
        return field.label if len(field.components) == 1 else f"{field.name}: {component}"
    owner = field.entity if field.index is None else f"{field.entity} {field.index}"
    return f"{owner}: {meaning.partition(',')[0]}"


def key_steps(episode: Episode, credit: Tensor, count: int = 4) -> list[int]:
    """Select informative steps, in order and at some distance from each other.

    By turns, the step whose reward differs most from the median, and the step with the largest change of credit since the
    step before. If these are too few, the steps that are farthest from those already selected.

    Args:
        episode: of T steps.
        credit: [T, n] of the episode.
        count: maximum number of steps.
    """
    length = len(episode.rewards)
    steps = torch.arange(length)
    unusual = (episode.rewards - episode.rewards.median()).abs()
    change = torch.zeros(length)
    change[1:] = (credit[1:] - credit[:-1]).abs().sum(1)
    selected: list[int] = []
    for turn in range(3 * count):
        distance = torch.stack([torch.full((length,), length), *((steps - step).abs() for step in selected)]).amin(0)
        score = (unusual, change)[turn % 2] if turn < 2 * count else distance.float()
        score = torch.where(distance > length // 10, score, 0.0)
        if len(selected) < count and float(score.amax()) > 0:
            selected.append(int(score.argmax()))
    return sorted(selected)
