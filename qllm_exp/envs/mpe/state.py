"""The global state of a particle world: its fields, and how to read them from a VMAS world."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Sphere
from vmas.simulator.dynamics.holonomic import Holonomic

from qllm_exp.envs.layout import StateField, StateLayout

_FieldReader = tuple[StateField, Callable[[], Tensor]]  # a field and a function that reads its columns, [N, width]

_INF = float("inf")
_FLAG = {0.0: "no", 1.0: "yes"}
# Scenarios whose one hidden goal is a landmark: the attribute of world.agents[0] that holds it.
_HIDDEN_GOAL = {"simple_adversary": "goal", "simple_push": "goal", "simple_speaker_listener": "goal_b"}
# Moving objects that are agents to VMAS but do not act, with their names in the state.
_OBJECTS = {"Ball": "ball", "target": "target"}


def position_field(kind: str, index: int | None, bound: float) -> StateField:
    """Return the field of an entity's position.

    Args:
        kind: name of the entity in the state, e.g. 'agent'.
        index: index among its kind; None where there is only one.
        bound: of both coordinates, in metres.
    """
    return StateField(kind, index, "position", ("x", "y"), -bound, bound, "metres")


def velocity_field(kind: str, index: int | None, max_speed: float) -> StateField:
    """Return the field of an entity's velocity.

    Args:
        kind: name of the entity in the state, e.g. 'agent'.
        index: index among its kind; None where there is only one.
        max_speed: in metres per second.
    """
    return StateField(kind, index, "velocity", ("x", "y"), -max_speed, max_speed, "metres per second")


def goal_field(landmark: int) -> StateField:
    """Return the field that says whether a landmark is the goal, which its entities may not know."""
    return StateField("landmark", landmark, "is_goal", ("flag",), 0.0, 1.0, special=_FLAG)


class WorldState:
    """Reads the global state of a VMAS world.

    The agents come first, in the order of their index, then opponents, moving objects and landmarks. Facts that a
    scenario hides from its entities (which landmark is the goal, what has been eaten) come last, where a mixing
    function needs them.

    Positions and velocities are (x, y) in VMAS's world units ('metres'). Rotations are in radians and only included
    where they matter: a circle that moves by force alone has none.

    Args:
        task: name of the scenario.
        scenario: the VMAS scenario, with its world.
        team: the agents of the team.

    Attributes:
        layout: the fields of the state.
        names: VMAS's names of the entities, by kind: 'agent', 'opponent', 'landmark'.
    """

    def __init__(self, task: str, scenario: Any, team: Sequence[Any]) -> None:
        world = scenario.world
        readers: list[_FieldReader] = []
        for index, agent in enumerate(team):
            readers += _entity_readers(world, agent, "agent", index)
        others = [agent for agent in world.agents if agent not in team]
        opponents = [agent for agent in others if agent.name not in _OBJECTS]
        for index, agent in enumerate(opponents):
            readers += _entity_readers(world, agent, "opponent", index)
        for agent in others:
            if agent not in opponents:
                readers += _entity_readers(world, agent, _OBJECTS[agent.name], None)
        landmark_range = _landmark_range(task, scenario)
        for index, landmark in enumerate(world.landmarks):
            readers += _entity_readers(world, landmark, "landmark", index, landmark_range)
        readers += _hidden_readers(task, world, team)
        self.layout = StateLayout.from_fields(field for field, _ in readers)
        self._read_functions = [read for _, read in readers]
        self.names = {
            "agent": [agent.name for agent in team],
            "opponent": [agent.name for agent in opponents],
            "landmark": [landmark.name for landmark in world.landmarks],
        }

    def read(self) -> Tensor:
        """The current state, [N, layout.size] float32."""
        return torch.cat([read() for read in self._read_functions], dim=-1)


def _landmark_range(task: str, scenario: Any) -> float:
    """Half the width of the square in which landmarks are placed. VMAS states it for its MPE scenarios only."""
    if task == "simple_tag":
        return float(scenario.bound)
    return 1.0 if task.startswith("simple") else _INF


def _entity_readers(
    world: Any, entity: Any, kind: str, index: int | None, fixed_range: float = _INF
) -> Iterator[_FieldReader]:
    """Yield the fields of an entity.

    Args:
        world: the VMAS world.
        entity: an agent or landmark of VMAS.
        kind: name of the entity in the state, e.g. 'agent'.
        index: index among its kind; None where there is only one.
        fixed_range: bound of the coordinates of an entity that cannot move.
    """
    state = entity.state
    bound = _position_range(world) if entity.movable else fixed_range
    yield position_field(kind, index, bound), lambda: state.pos
    if entity.movable:
        max_speed = min(limit if limit is not None else _INF for limit in (entity.max_speed, entity.v_range))
        yield velocity_field(kind, index, max_speed), lambda: state.vel
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
    """Bound of a moving entity's coordinates: the larger half-width of the world, infinite where it is unbounded."""
    half_widths = (world.x_semidim, world.y_semidim)
    return _INF if None in half_widths else float(max(half_widths))


def _hidden_readers(task: str, world: Any, team: Sequence[Any]) -> Iterator[_FieldReader]:
    """Yield the fields that the scenario hides from its entities."""
    if task in _HIDDEN_GOAL:
        attribute = _HIDDEN_GOAL[task]
        for index, landmark in enumerate(world.landmarks):
            yield goal_field(index), partial(_read_goal_flag, world, world.agents[0], attribute, landmark)
    elif task == "simple_reference":
        for index in range(len(team)):
            partner = team[1 - index]  # who alone knows the agent's goal
            for number, landmark in enumerate(world.landmarks):
                yield (
                    StateField("agent", index, f"goal_is_landmark_{number}", ("flag",), 0.0, 1.0, special=_FLAG),
                    partial(_read_goal_flag, world, partner, "goal_b", landmark),
                )
    elif task == "simple_crypto":
        speaker = next(agent for agent in team if agent.speaker)
        bits = tuple(f"bit_{bit}" for bit in range(world.dim_c))
        yield StateField("message", None, "secret", bits, 0.0, 1.0), lambda: speaker.secret.float()
        yield StateField("message", None, "key", bits, 0.0, 1.0), lambda: speaker.key.float()
    elif task == "dispersion":
        for index, food in enumerate(world.landmarks):
            yield (
                StateField("landmark", index, "is_eaten", ("flag",), 0.0, 1.0, special=_FLAG),
                partial(_read_eaten, food),
            )


def _read_goal_flag(world: Any, agent: Any, attribute: str, landmark: Any) -> Tensor:
    """1 where the agent's goal is the landmark, [N, 1]."""
    # VMAS draws one goal for all copies of the world at each reset.
    return torch.full((world.batch_dim, 1), float(getattr(agent, attribute) is landmark), device=world.device)


def _read_eaten(food: Any) -> Tensor:
    """1 where the food has been eaten, [N, 1]."""
    flags: Tensor = food.eaten
    return flags.float().unsqueeze(-1)
