"""Names and words for PettingZoo environments: as far as their observations are known, else numbered columns."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription

_INF = float("inf")
_SPREAD = "mpe2.simple_spread_v3"
_SPREAD_ACTIONS: tuple[str, ...] = ("no push", "push left", "push right", "push down", "push up")
_MOST_WORDS = 4000  # characters of an environment's own documentation that are passed on


def state_layout(
    task: str,
    options: dict[str, Any],
    env: Any,
    boxes: Sequence[Any],
    views: Sequence[npt.NDArray[np.float32]],
    state: npt.NDArray[np.float32],
) -> StateLayout:
    """The layout of the global state.

    Args:
        boxes: each agent's observation space; views: what each sees now, flat; state: the state now, flat.

    The names of the columns are known for mpe2.simple_spread_v3 with full sight. For any other environment the fields
    are the agents' observations, if the state consists of them, or else the state in one piece.
    """
    if task == _SPREAD and options.get("num_agent_neighbors") is None and options.get("num_landmark_neighbors") is None:
        return StateLayout.of(_spread_fields(len(views), len(env.unwrapped.world.landmarks)))
    seen = np.concatenate(views)
    if seen.size == state.size and np.array_equal(seen, state):
        return StateLayout.of(
            _numbered("agent", index, "observation", view.size, float(box.low.min()), float(box.high.max()))
            for index, (view, box) in enumerate(zip(views, boxes, strict=True))
        )
    space: Any = getattr(env, "state_space", None)
    low, high = (float(space.low.min()), float(space.high.max())) if hasattr(space, "low") else (-_INF, _INF)
    return StateLayout.of([_numbered("environment", None, "state", state.size, low, high)])


def _numbered(entity: str, index: int | None, name: str, width: int, low: float, high: float) -> StateField:
    return StateField(entity, index, name, tuple(f"component_{column}" for column in range(width)), low, high)


def _spread_fields(n_agents: int, n_landmarks: int) -> Iterator[StateField]:
    """simple_spread: its state is what each agent sees: own velocity and position, then all others relative to it."""

    def place(agent: int, name: str) -> StateField:
        return StateField("agent", agent, name, ("x", "y"), -_INF, _INF, "world units")

    for agent in range(n_agents):
        others = [other for other in range(n_agents) if other != agent]
        yield StateField("agent", agent, "velocity", ("x", "y"), -_INF, _INF, "world units per second")
        yield place(agent, "position")
        for landmark in range(n_landmarks):
            yield place(agent, f"offset_to_landmark_{landmark}")
        for other in others:
            yield place(agent, f"offset_to_agent_{other}")
        for other in others:
            name, silent = f"message_of_agent_{other}", {0.0: "agents cannot speak in this task"}
            yield StateField("agent", agent, name, ("word_0", "word_1"), 0.0, 0.0, special=silent)


def describe(config: Any, env: Any, n_agents: int, n_actions: int) -> TaskDescription:
    """The task in words: our own for mpe2.simple_spread_v3, else the environment's documentation, where it has any."""
    combined = "mean" if config.reward == "mean" else "sum"
    each_step = f"Each step: the {combined} of the rewards that the environment gives its {n_agents} agents."
    if config.task == _SPREAD:
        goal, reward = _spread_words(n_agents, config.options.get("local_ratio", 0.5))
        reward, actions = f"{each_step} {reward}", _SPREAD_ACTIONS
    else:
        goal, reward = _documentation(config.task, env, n_agents), each_step
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


def _spread_words(n_agents: int, local_ratio: float) -> tuple[str, str]:
    """Goal and reward of simple_spread."""
    goal = (
        f"{n_agents} agents and {n_agents} landmarks lie in a plane. The agents are to cover all landmarks, each another "
        "one, without bumping into each other. The global state is what the agents see, one after the other: their own "
        "velocity and position, and where the landmarks and the other agents are relative to them."
    )
    reward = (
        f"Each agent gets {1 - local_ratio:g} times the team's part (minus the distance of each landmark to the agent "
        f"nearest to it, summed over the landmarks) plus {local_ratio:g} times its own part (-1 for each other agent "
        "that it overlaps)."
    )
    return goal, reward


def _documentation(task: str, env: Any, n_agents: int) -> str:
    module = sys.modules.get(type(env.unwrapped).__module__)
    words = inspect.cleandoc((module.__doc__ if module else None) or type(env.unwrapped).__doc__ or "")[:_MOST_WORDS]
    if not words:
        return f"All {n_agents} agents of {task} are one team and are to get as much reward as they can."
    return f"All {n_agents} agents are one team. The environment's own documentation says:\n{words}"
