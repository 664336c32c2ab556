"""The scene at one step of an episode: where entities are on the board, the pitch or the plane, or the joint action.

The joint action is for tasks whose states contain no places.

Shapes: T steps, n agents.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.episodes import Entity

if TYPE_CHECKING:  # matplotlib is imported only when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class EntityStyle(NamedTuple):
    """How entities of a kind are drawn.

    Attributes:
        marker: as matplotlib takes it.
        fill: colour, or 'none'.
        edge: colour.
        size: of the marker, in points.
    """

    marker: str
    fill: str
    edge: str
    size: float


# Okabe & Ito (2008), distinguishable for colour-blind readers, with Tol's wine in place of yellow, which is hard to see as a
# line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_LIGHT_COLOURS = {"#CC79A7", "#E69F00", "#56B4E9"}  # text on them is black
_ENTITY_STYLES = {
    "food": EntityStyle("s", "#BBCC33", "#000000", 11),
    "landmark": EntityStyle("s", "none", "#555555", 12),
    "opponent": EntityStyle("v", "#000000", "#000000", 6),
    "enemy": EntityStyle("X", "#000000", "#FFFFFF", 9),
    "teammate": EntityStyle("o", "#FFFFFF", "#555555", 6),
    "ball": EntityStyle("o", "#F0E442", "#000000", 13),  # large enough to show as a ring around the agent that has it
}
_OTHER_STYLE = EntityStyle("D", "#DDDDDD", "#555555", 7)


def agent_colour(agent: int) -> str:
    """Return the colour of an agent in all figures; the ninth agent has the colour of the first."""
    return _COLOURS[agent % len(_COLOURS)]


def scene_colours() -> list[str]:
    """Return all fill colours of a scene, those of the agents first."""
    return [*_COLOURS, *(style.fill for style in _ENTITY_STYLES.values() if style.fill != "none")]


def agent_line(agent: int) -> dict[str, Any]:
    """Return the style of an agent's line in all figures, as keywords of `plot`."""
    return {
        "color": agent_colour(agent),
        "linestyle": _LINES[agent % len(_LINES)],
        "linewidth": 1.4,
        "label": f"agent {agent}",
    }


def draw_agent(axis: "Axes", x: float, y: float, agent: int, size: float, font: float) -> None:
    """Draw a disc with the agent's number.

    Args:
        axis: to draw on.
        x: of the centre.
        y: of the centre.
        agent: index.
        size: diameter in points.
        font: size of the number in points.
    """
    colour = agent_colour(agent)
    text_colour = "#000000" if colour in _LIGHT_COLOURS else "#FFFFFF"
    axis.plot(x, y, "o", color=colour, markersize=size, markeredgecolor="#FFFFFF", markeredgewidth=0.5, zorder=3)
    axis.text(x, y, str(agent), color=text_colour, fontsize=font, ha="center", va="center_baseline", zorder=4)


def is_pitch(entities: list[Entity]) -> bool:
    """Whether the places are on a football pitch, which is drawn twice as wide as other scenes."""
    return any(entity.unit.startswith("pitch") for entity in entities)


def legend_marker(kind: str) -> "Line2D":
    """Return a legend handle that shows how entities of a kind are drawn."""
    from matplotlib.lines import Line2D

    style = _ENTITY_STYLES.get(kind, _OTHER_STYLE)
    return Line2D(
        [],
        [],
        linestyle="",
        marker=style.marker,
        markerfacecolor=style.fill,
        markeredgecolor=style.edge,
        markersize=min(style.size, 8),
        label=kind,
    )


def draw_scene(axis: "Axes", env: TeamEnv, entities: list[Entity], step: int, credit: Tensor) -> None:
    """Draw all entities at a step. Agents have their number, a size that grows with credit, and a trail of their last steps.

    Units show their remaining health in percent.

    Args:
        axis: to draw on.
        env: of the episode.
        entities: of the episode.
        step: number of the step.
        credit: [T, n] of the whole episode, so that sizes can be compared between scenes.
    """
    draw_entities(axis, env, entities, step, credit)
    draw_background(axis, env, entities)


def draw_entities(axis: "Axes", env: TeamEnv, entities: list[Entity], step: int, credit: Tensor) -> None:
    """Draw the part of `draw_scene` that differs from step to step; same arguments."""
    board = _is_board(entities)
    count_by_kind = Counter(entity.kind for entity in entities)
    largest = max(float(credit.abs().amax()), 1e-9)
    scale = min(1, 10 / _board_size(env)) if board else 1
    for entity in sorted(entities, key=lambda entity: entity.kind == "agent"):
        path = entity.path.flip(1) if board else entity.path  # on a board x is the row
        x, y = path[step].tolist()
        if math.isnan(x):
            continue
        if entity.health is not None:
            text = f"{100 * float(entity.health[step]):.0f}"
            axis.annotate(text, (x, y), (0, -9), textcoords="offset points", fontsize=5, ha="center", zorder=4)
        if entity.kind == "agent" and entity.index is not None and entity.index < env.n_agents:
            colour = agent_colour(entity.index)
            axis.plot(*path[max(0, step - 5) : step + 1].T.numpy(), color=colour, linewidth=1, alpha=0.6, zorder=2)
            size = max(7, scale * (8 + 4 * abs(float(credit[step, entity.index])) / largest))
            draw_agent(axis, x, y, entity.index, size, 6.5 * scale**0.5)
            continue
        style = _ENTITY_STYLES.get(entity.kind, _OTHER_STYLE)
        axis.plot(
            x,
            y,
            style.marker,
            markerfacecolor=style.fill,
            markeredgecolor=style.edge,
            markersize=scale * style.size,
            zorder=0.9 if entity.kind == "ball" else 1,
        )
        label = ""
        if entity.level is not None:
            label = f"{float(entity.level[step]):g}"
        elif entity.index is not None and count_by_kind[entity.kind] <= 6:
            label = str(entity.index)
        if label and entity.kind not in {"opponent", "teammate", "enemy"}:
            axis.text(x, y, label, fontsize=6 * scale**0.5, ha="center", va="center_baseline", zorder=1.5)


def _is_board(entities: list[Entity]) -> bool:
    return any(entity.unit == "cells" for entity in entities)


def _board_size(env: TeamEnv) -> int:
    """Number of cells along a side."""
    return 1 + max(int(field.high) for field in env.layout if field.name == "position")


def draw_background(axis: "Axes", env: TeamEnv, entities: list[Entity]) -> None:
    """Draw the part of `draw_scene` that is the same at every step: the board, the pitch, or axes for all places.

    Args:
        axis: to draw on.
        env: of the episode.
        entities: of the episode.
    """
    axis.set_aspect("equal")
    if _is_board(entities):
        _draw_board(axis, _board_size(env))
    elif is_pitch(entities):
        _draw_pitch(axis)
    else:
        _draw_plane(axis, entities)


def _draw_board(axis: "Axes", size: int) -> None:
    """Draw a square board of cells; row 0 is at the top."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    lines = np.arange(1, size) - 0.5
    axis.hlines(lines, -0.5, size - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
    axis.vlines(lines, -0.5, size - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)


def _draw_pitch(axis: "Axes") -> None:
    """Draw a football pitch with its halfway line and goals; y grows downwards."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.plot([-1, 1, 1, -1, -1], [-0.42, -0.42, 0.42, 0.42, -0.42], color="#999999", linewidth=0.8, zorder=0)
    axis.vlines([0], -0.42, 0.42, color="#999999", linewidth=0.8, zorder=0)
    axis.vlines([-1, 1], -0.044, 0.044, color="#000000", linewidth=3, zorder=0)
    axis.set_xlim(-1.08, 1.08)
    axis.set_ylim(0.48, -0.48)


def _draw_plane(axis: "Axes", entities: list[Entity]) -> None:
    """Set square limits that contain all places of the episode, with a margin."""
    places = torch.cat([entity.path for entity in entities])
    places = places[~places.isnan().any(1)]
    middle = (places.amax(0) + places.amin(0)) / 2
    half = 0.58 * float((places.amax(0) - places.amin(0)).max()) + 0.05
    axis.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
    axis.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
    axis.locator_params(nbins=3)
    axis.tick_params(labelsize=6, length=2, pad=1)


def draw_joint_action(axis: "Axes", env: TeamEnv, actions: Tensor) -> None:
    """Draw a grid with a row per agent and a column per action, and each agent's disc at its action.

    Args:
        axis: to draw on.
        env: of the episode.
        actions: [n] of the step.
    """
    draw_chosen_actions(axis, actions)
    draw_action_grid(axis, env)


def draw_chosen_actions(axis: "Axes", actions: Tensor) -> None:
    """Draw the part of `draw_joint_action` that differs from step to step. actions: [n]."""
    for agent, action in enumerate(actions.tolist()):
        draw_agent(axis, action, agent, agent, 9, 6.5)


def draw_action_grid(axis: "Axes", env: TeamEnv) -> None:
    """Draw the part of `draw_joint_action` that is the same at every step."""
    axis.set_xlim(-0.5, env.n_actions - 0.5)
    axis.set_ylim(env.n_agents - 0.5, -0.5)
    axis.set_xticks(range(env.n_actions))
    axis.set_yticks(range(env.n_agents), [f"agent {agent}" for agent in range(env.n_agents)])
    axis.label_outer()
    axis.hlines(np.arange(1, env.n_agents) - 0.5, -0.5, env.n_actions - 0.5, color="#DDDDDD", linewidth=0.5)
    axis.vlines(np.arange(1, env.n_actions) - 0.5, -0.5, env.n_agents - 0.5, color="#DDDDDD", linewidth=0.5)
