"""Names of the columns of an agent's observation, for the scenarios whose observation is known column by column."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qllm_exp.envs.layout import StateField

_UNIT, _SPEED_UNIT = "metres", "metres per second"


def observation_fields(task: str, scenario: Any, team: Sequence[Any], agent: int) -> Iterator[StateField]:
    """Yield the fields of an agent's observation, without padding; none for a scenario whose observation is not known.

    Args:
        task: name of the scenario.
        scenario: the VMAS scenario, with its world.
        team: the agents of the team.
        agent: index of the observer in the team.
    """
    known = _KNOWN.get(task)
    if known is None:
        return
    names = _names(scenario.world, team)
    others = [(other, names[other]) for other in scenario.world.agents if other is not team[agent]]
    for name in known(scenario, team[agent], others):
        unit = _SPEED_UNIT if name.startswith("velocity") else _UNIT
        yield StateField("agent", agent, name, ("x", "y"), -math.inf, math.inf, unit)


_Others = Sequence[tuple[Any, str]]  # the other agents of the world, each with its name in the state


def _names(world: Any, team: Sequence[Any]) -> dict[Any, str]:
    """The names of the world's agents in the state, e.g. 'agent_0' and 'opponent_0'."""
    opponents = [agent for agent in world.agents if agent not in team]
    numbered = (("agent", team), ("opponent", opponents))
    return {agent: f"{kind}_{index}" for kind, agents in numbered for index, agent in enumerate(agents)}


def _to_landmarks(scenario: Any) -> list[str]:
    return [f"offset_to_landmark_{index}" for index in range(len(scenario.world.landmarks))]


def _spread(scenario: Any, observer: Any, others: _Others) -> list[str]:
    """Names of the pairs of columns in simple_spread."""
    seen = others if scenario.obs_agents else ()
    return ["position", "velocity", *_to_landmarks(scenario), *(f"offset_to_{name}" for _, name in seen)]


def _adversary(scenario: Any, observer: Any, others: _Others) -> list[str]:
    """Names of the pairs of columns in simple_adversary, for an agent that knows the goal."""
    return ["offset_to_goal", *_to_landmarks(scenario), *(f"offset_to_{name}" for _, name in others)]


def _tag(scenario: Any, observer: Any, others: _Others) -> list[str]:
    """Names of the pairs of columns in simple_tag."""
    seen = [
        (other, name) for other, name in others if other.adversary != observer.adversary or scenario.observe_same_team
    ]
    own = [name for name, shown in (("velocity", scenario.observe_vel), ("position", scenario.observe_pos)) if shown]
    # An adversary knows how fast those are whom it chases; they know it of each other.
    speeds = [f"velocity_of_{name}" for other, name in seen if not other.adversary]
    return [*own, *_to_landmarks(scenario), *(f"offset_to_{name}" for _, name in seen), *speeds]


_KNOWN: dict[str, Callable[[Any, Any, _Others], list[str]]] = {
    "simple_spread": _spread,
    "simple_adversary": _adversary,
    "simple_tag": _tag,
}
