"""The global state of a VMAS world: which field stands for what, and how to read it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Sphere
from vmas.simulator.dynamics.holonomic import Holonomic

from qllm_exp.envs.layout import StateField, StateLayout

_Part = tuple[StateField, Callable[[], Tensor]]  # a field and a function that reads its columns, [N, width]

_INF = float("inf")
# Scenarios whose one hidden goal is a landmark: where VMAS keeps it.
_HIDDEN_GOAL: dict[str, Callable[[Any], Any]] = {
    "simple_adversary": lambda world: world.agents[0].goal,
    "simple_push": lambda world: world.agents[0].goal,
    "simple_speaker_listener": lambda world: world.agents[0].goal_b,
}
# VMAS's own moving things that are agents to it, but no players.
_THINGS = {"Ball": "ball", "target": "target"}


class WorldState:
    """Reads the global state of a VMAS world: the agents in the order of their index, then opponents, then landmarks.

    Positions and velocities are (x, y) in VMAS's world units ('metres'); rotations in radians, only where they
    matter (no rotation of a circle that moves by force alone). What a scenario keeps hidden from its entities (which
    landmark is the goal, what has been eaten) follows where a mixing function needs it.
    """

    def __init__(self, task: str, scenario: Any, team: Sequence[Any]) -> None:
        world = scenario.world
        parts: list[_Part] = []
        for index, agent in enumerate(team):
            parts += _entity(world, agent, "agent", index)
        others = [agent for agent in world.agents if agent not in team]
        players = [agent for agent in others if agent.name not in _THINGS]
        for index, agent in enumerate(players):
            parts += _entity(world, agent, "opponent", index)
        for agent in others:
            if agent not in players:
                parts += _entity(world, agent, _THINGS[agent.name], None)
        spawn = _landmark_range(task, scenario)
        for index, landmark in enumerate(world.landmarks):
            parts += _entity(world, landmark, "landmark", index, spawn)
        parts += _hidden(task, world, team)
        self.layout = StateLayout.of(field for field, _ in parts)
        self._readers = [reader for _, reader in parts]
        self.names = {
            "agent": [agent.name for agent in team],
            "opponent": [agent.name for agent in players],
            "landmark": [landmark.name for landmark in world.landmarks],
        }

    def read(self) -> Tensor:
        """The state now, [N, layout.size] float32."""
        return torch.cat([reader() for reader in self._readers], dim=-1)


def _landmark_range(task: str, scenario: Any) -> float:
    """Half the width of the square that landmarks are placed in; VMAS states it for its MPE scenarios only."""
    if task == "simple_tag":
        return float(scenario.bound)
    return 1.0 if task.startswith("simple") else _INF


def _entity(world: Any, entity: Any, kind: str, index: int | None, fixed_range: float = _INF) -> Iterator[_Part]:
    state = entity.state
    low_high = _position_range(world) if entity.movable else fixed_range
    yield (
        StateField(kind, index, "position", ("x", "y"), -low_high, low_high, "metres"),
        lambda: state.pos,
    )
    if entity.movable:
        fastest = min(limit if limit is not None else _INF for limit in (entity.max_speed, entity.v_range))
        yield (
            StateField(kind, index, "velocity", ("x", "y"), -fastest, fastest, "metres per second"),
            lambda: state.vel,
        )
    if not isinstance(entity.shape, Sphere) or not isinstance(getattr(entity, "dynamics", Holonomic()), Holonomic):
        yield StateField(kind, index, "rotation", ("angle",), -_INF, _INF, "radians"), lambda: state.rot
        if entity.rotatable:
            yield (
                StateField(kind, index, "rotation_speed", ("angle",), -_INF, _INF, "radians per second"),
                lambda: state.ang_vel,
            )
    if not getattr(entity, "silent", True):
        words = tuple(f"word_{word}" for word in range(world.dim_c))
        yield (
            StateField(kind, index, "message", words, 0.0, 1.0, special={1.0: "the word just said"}),
            lambda: state.c,
        )


def _position_range(world: Any) -> float:
    """What VMAS keeps moving entities inside: the larger half-width of the world, infinite where it has no bound."""
    half_widths = (world.x_semidim, world.y_semidim)
    return _INF if None in half_widths else float(max(half_widths))


def _hidden(task: str, world: Any, team: Sequence[Any]) -> Iterable[_Part]:
    flag = {0.0: "no", 1.0: "yes"}
    if task in _HIDDEN_GOAL:
        goal_of = _HIDDEN_GOAL[task]
        for index, landmark in enumerate(world.landmarks):
            yield (
                StateField("landmark", index, "is_goal", ("flag",), 0.0, 1.0, special=flag),
                partial(_flag, world, goal_of, landmark),
            )
    elif task == "simple_reference":
        for index in range(len(team)):
            partner = team[1 - index]
            for place, landmark in enumerate(world.landmarks):
                yield (
                    StateField("agent", index, f"goal_is_landmark_{place}", ("flag",), 0.0, 1.0, special=flag),
                    partial(_flag, world, partial(_goal_of, partner), landmark),
                )
    elif task == "simple_crypto":
        speaker = next(agent for agent in team if agent.speaker)
        bits = tuple(f"bit_{bit}" for bit in range(world.dim_c))
        yield StateField("message", None, "secret", bits, 0.0, 1.0), lambda: speaker.secret.float()
        yield StateField("message", None, "key", bits, 0.0, 1.0), lambda: speaker.key.float()
    elif task == "dispersion":
        for index, food in enumerate(world.landmarks):
            yield (
                StateField("landmark", index, "is_eaten", ("flag",), 0.0, 1.0, special=flag),
                partial(_eaten, food),
            )


def _goal_of(agent: Any, world: Any) -> Any:
    return agent.goal_b


def _flag(world: Any, goal_of: Callable[[Any], Any], landmark: Any) -> Tensor:
    # VMAS draws one goal for all copies of the world at each reset.
    return torch.full((world.batch_dim, 1), float(goal_of(world) is landmark), device=world.device)


def _eaten(food: Any) -> Tensor:
    flags: Tensor = food.eaten
    return flags.float().unsqueeze(-1)
