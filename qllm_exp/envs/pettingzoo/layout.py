"""State layout and task description of PettingZoo environments: names where they are known, else numbered columns."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription, numbered_field

_INF = float("inf")
_SPREAD = "mpe2.simple_spread_v3"
MPE_ACTIONS: tuple[str, ...] = ("no push", "push left", "push right", "push down", "push up")
_MAX_DOCUMENTATION = 4000  # characters of an environment's own documentation that are passed on


def state_layout(
    task: str,
    options: dict[str, Any],
    env: Any,
    boxes: Sequence[Any],
    views: Sequence[npt.NDArray[np.float32]],
    state: npt.NDArray[np.float32],
) -> StateLayout:
    """Build the layout of the global state.

    The fields are those of the agents' observations if the state consists of them; otherwise the whole state is one field.

    Args:
        task: module path of the environment.
        options: the options that the environment was built with.
        env: one copy of the environment.
        boxes: observation space of each agent.
        views: current observation of each agent, flat.
        state: current state, flat.
    """
    all_views = np.concatenate(views)
    if all_views.size == state.size and np.array_equal(all_views, state):
        agents = range(len(boxes))
        return StateLayout.from_fields(
            field for agent in agents for field in observation_fields(task, options, boxes, agent)
        )
    space: Any = getattr(env, "state_space", None)
    low, high = -_INF, _INF
    if hasattr(space, "low"):
        low, high = float(space.low.min()), float(space.high.max())
    return StateLayout.from_fields([numbered_field("environment", None, "state", state.size, low, high)])


def observation_fields(task: str, options: dict[str, Any], boxes: Sequence[Any], agent: int) -> list[StateField]:
    """Return the fields of an agent's observation, without padding.

    The names of the columns are known for mpe2.simple_spread_v3 with full sight, else the columns are numbered.

    Args:
        task: module path of the environment.
        options: the options that the environment was built with.
        boxes: observation space of each agent.
        agent: index of the agent.
    """
    if task == _SPREAD and options.get("num_agent_neighbors") is None and options.get("num_landmark_neighbors") is None:
        return list(_spread_fields(len(boxes), agent))
    box = boxes[agent]
    width, low, high = int(np.prod(box.shape)), float(box.low.min()), float(box.high.max())
    return [numbered_field("agent", agent, "observation", width, low, high)]


def _spread_fields(n_agents: int, agent: int) -> Iterator[StateField]:
    """Yield the fields of an agent's observation in simple_spread, which has a landmark for each agent.

    An agent observes its own velocity and position, then the landmarks and the other agents relative to itself.
    """
    silent = {0.0: "agents cannot speak in this task"}
    others = [other for other in range(n_agents) if other != agent]
    yield StateField("agent", agent, "velocity", ("x", "y"), -_INF, _INF, "world units per second")
    yield _spread_position(agent, "position")
    for landmark in range(n_agents):
        yield _spread_position(agent, f"offset_to_landmark_{landmark}")
    for other in others:
        yield _spread_position(agent, f"offset_to_agent_{other}")
    for other in others:
        yield StateField("agent", agent, f"message_of_agent_{other}", ("word_0", "word_1"), 0.0, 0.0, special=silent)


def _spread_position(agent: int, name: str) -> StateField:
    """A position or offset in simple_spread."""
    return StateField("agent", agent, name, ("x", "y"), -_INF, _INF, "world units")


def describe(config: Any, env: Any, n_agents: int, n_actions: int) -> TaskDescription:
    """Describe the task in words: by our own text for mpe2.simple_spread_v3, else by the environment's documentation.

    Args:
        config: the `Config` of this environment.
        env: one copy of the environment.
        n_agents: number of agents.
        n_actions: number of actions of an agent.
    """
    aggregate = "mean" if config.reward == "mean" else "sum"
    reward = f"Each step: the {aggregate} of the rewards that the environment gives its {n_agents} agents."
    if config.task == _SPREAD:
        goal = _spread_goal(n_agents)
        reward = f"{reward} {spread_reward(config.options.get('local_ratio', 0.5))}"
        actions = MPE_ACTIONS
    else:
        goal = _documentation(config.task, env, n_agents)
        actions = tuple(f"action {action}" for action in range(n_actions))
    return TaskDescription(
        env="pettingzoo",
        task=config.task,
        goal=goal,
        reward=reward,
        actions=actions,
        episode=f"When the environment ends it, at the latest after {config.episode_limit} steps.",
        n_agents=n_agents,
    )


def _spread_goal(n_agents: int) -> str:
    """Goal of simple_spread."""
    return (
        f"{n_agents} agents and {n_agents} landmarks lie in a plane. The agents are to cover all landmarks, each another "
        "one, without bumping into each other. The global state is what the agents see, one after the other: their own "
        "velocity and position, and where the landmarks and the other agents are relative to them."
    )


def spread_reward(local_ratio: float) -> str:
    """Reward of one agent of simple_spread."""
    return (
        f"Each agent gets {1 - local_ratio:g} times the team's part (minus the distance of each landmark to the agent "
        f"nearest to it, summed over the landmarks) plus {local_ratio:g} times its own part (-1 for each other agent "
        "that it overlaps)."
    )


def _documentation(task: str, env: Any, n_agents: int) -> str:
    """The documentation of the environment's module or class; a general sentence where there is none."""
    module = sys.modules.get(type(env.unwrapped).__module__)
    docstring = (module.__doc__ if module else None) or type(env.unwrapped).__doc__ or ""
    documentation = inspect.cleandoc(docstring)[:_MAX_DOCUMENTATION]
    if not documentation:
        return f"All {n_agents} agents of {task} are one team and are to get as much reward as they can."
    return f"All {n_agents} agents are one team. The environment's own documentation says:\n{documentation}"
