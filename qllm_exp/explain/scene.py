"""The scene at one step of an episode: where everything is on the board, the pitch or the plane, or the joint action.

A task whose states tell no places shows the joint action instead.

Shapes: T steps, n agents.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.episodes import Entity

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from matplotlib.axes import Axes

# Okabe & Ito (2008): distinguishable with colour-blindness; Tol's wine in place of yellow, which is hard to see as a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_LIGHT = {"#CC79A7", "#E69F00", "#56B4E9"}  # backgrounds of black text
# kind of entity: marker, fill, edge, size of the marker in points
_LOOKS = {
    "food": ("s", "#BBCC33", "#000000", 11),
    "landmark": ("s", "none", "#555555", 12),
    "opponent": ("v", "#000000", "#000000", 6),
    "teammate": ("o", "#FFFFFF", "#555555", 6),
    "ball": ("o", "#F0E442", "#000000", 13),  # a ring of it is seen around the agent that has it
}
_OTHER_LOOK = ("D", "#DDDDDD", "#555555", 7)


def agent_colour(agent: int) -> str:
    """The colour of an agent in all pictures; the ninth agent has that of the first again."""
    return _COLOURS[agent % len(_COLOURS)]


def scene_colours() -> list[str]:
    """All that fills something in a scene, the agents' first."""
    return [*_COLOURS, *(fill for _, fill, _, _ in _LOOKS.values() if fill != "none")]


def agent_line(agent: int) -> dict[str, Any]:
    """How an agent's line looks, in all pictures: keywords for `plot`."""
    return {
        "color": agent_colour(agent),
        "linestyle": _LINES[agent % len(_LINES)],
        "linewidth": 1.4,
        "label": f"agent {agent}",
    }


def draw_agent(axis: "Axes", x: float, y: float, agent: int, size: float, font: float) -> None:
    """A disc with the agent's number; `size` and `font` in points."""
    colour = agent_colour(agent)
    dark = "#000000" if colour in _LIGHT else "#FFFFFF"
    axis.plot(x, y, "o", color=colour, markersize=size, markeredgecolor="#FFFFFF", markeredgewidth=0.5, zorder=3)
    axis.text(x, y, str(agent), color=dark, fontsize=font, ha="center", va="center_baseline", zorder=4)


def is_pitch(things: list[Entity]) -> bool:
    """Whether the places are those of a football pitch, which is drawn twice as wide as other scenes."""
    return any(thing.unit.startswith("pitch") for thing in things)


def marker(kind: str) -> Any:
    """A handle for a legend: how entities of a kind look in a scene."""
    from matplotlib.lines import Line2D

    shape, fill, edge, size = _LOOKS.get(kind, _OTHER_LOOK)
    return Line2D(
        [],
        [],
        linestyle="",
        marker=shape,
        markerfacecolor=fill,
        markeredgecolor=edge,
        markersize=min(size, 8),
        label=kind,
    )


def draw_scene(axis: "Axes", env: TeamEnv, things: list[Entity], step: int, credit: Tensor) -> None:
    """Where everything is at a step; agents with their number, larger with more credit, and the way of their last steps.

    `credit` is that of the whole episode, [T, n], so that sizes can be compared from scene to scene.
    """
    draw_things(axis, env, things, step, credit)
    draw_ground(axis, env, things)


def draw_things(axis: "Axes", env: TeamEnv, things: list[Entity], step: int, credit: Tensor) -> None:
    """The part of `draw_scene` that differs from step to step."""
    board = _is_board(things)
    numbered = Counter(thing.kind for thing in things)
    largest = max(float(credit.abs().amax()), 1e-9)
    scale = min(1, 10 / _board_size(env)) if board else 1
    for thing in sorted(things, key=lambda one: one.kind == "agent"):
        path = thing.path.flip(1) if board else thing.path  # x is the row there
        x, y = path[step].tolist()
        if math.isnan(x):
            continue
        level = "" if thing.level is None else f"{float(thing.level[step]):g}"
        if thing.kind == "agent" and thing.index is not None and thing.index < env.n_agents:
            colour = agent_colour(thing.index)
            axis.plot(*path[max(0, step - 5) : step + 1].T.numpy(), color=colour, linewidth=1, alpha=0.6, zorder=2)
            size = max(7, scale * (8 + 4 * abs(float(credit[step, thing.index])) / largest))
            draw_agent(axis, x, y, thing.index, size, 6.5 * scale**0.5)
            continue
        shape, fill, edge, size = _LOOKS.get(thing.kind, _OTHER_LOOK)
        axis.plot(
            x,
            y,
            shape,
            markerfacecolor=fill,
            markeredgecolor=edge,
            markersize=scale * size,
            zorder=0.9 if thing.kind == "ball" else 1,
        )
        label = level or (str(thing.index) if thing.index is not None and numbered[thing.kind] <= 6 else "")
        if label and thing.kind not in {"opponent", "teammate"}:
            axis.text(x, y, label, fontsize=6 * scale**0.5, ha="center", va="center_baseline", zorder=1.5)


def _is_board(things: list[Entity]) -> bool:
    return any(thing.unit == "cells" for thing in things)


def _board_size(env: TeamEnv) -> int:
    """Cells along a side."""
    return 1 + max(int(one.high) for one in env.layout if one.name == "position")


def draw_ground(axis: "Axes", env: TeamEnv, things: list[Entity]) -> None:
    """The part of `draw_scene` that is the same at every step: the board, the pitch, or room for all places of the episode."""
    board = _is_board(things)
    axis.set_aspect("equal")
    if board or is_pitch(things):
        axis.set_xticks([])
        axis.set_yticks([])
    if board:
        size = _board_size(env)
        axis.set_xlim(-0.5, size - 0.5)
        axis.set_ylim(size - 0.5, -0.5)  # row 0 is the top
        lines = np.arange(1, size) - 0.5
        axis.hlines(lines, -0.5, size - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
        axis.vlines(lines, -0.5, size - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
        return
    if is_pitch(things):
        axis.plot([-1, 1, 1, -1, -1], [-0.42, -0.42, 0.42, 0.42, -0.42], color="#999999", linewidth=0.8, zorder=0)
        axis.vlines([0], -0.42, 0.42, color="#999999", linewidth=0.8, zorder=0)
        axis.vlines([-1, 1], -0.044, 0.044, color="#000000", linewidth=3, zorder=0)
        axis.set_xlim(-1.08, 1.08)
        axis.set_ylim(0.48, -0.48)  # y grows downwards
        return
    every = torch.cat([thing.path for thing in things])
    every = every[~every.isnan().any(1)]
    middle, half = (every.amax(0) + every.amin(0)) / 2, 0.58 * float((every.amax(0) - every.amin(0)).max()) + 0.05
    axis.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
    axis.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
    axis.locator_params(nbins=3)
    axis.tick_params(labelsize=6, length=2, pad=1)


def draw_joint_action(axis: "Axes", env: TeamEnv, actions: Tensor) -> None:
    """A task without places: a row per agent and a column per action, with the one taken filled. actions: [n]."""
    draw_taken(axis, actions)
    draw_choices(axis, env)


def draw_taken(axis: "Axes", actions: Tensor) -> None:
    """The part of `draw_joint_action` that differs from step to step."""
    for agent, action in enumerate(actions.tolist()):
        draw_agent(axis, action, agent, agent, 9, 6.5)


def draw_choices(axis: "Axes", env: TeamEnv) -> None:
    """The part of `draw_joint_action` that is the same at every step."""
    axis.set_xlim(-0.5, env.n_actions - 0.5)
    axis.set_ylim(env.n_agents - 0.5, -0.5)
    axis.set_xticks(range(env.n_actions))
    axis.set_yticks(range(env.n_agents), [f"agent {agent}" for agent in range(env.n_agents)])
    axis.label_outer()
    axis.hlines(np.arange(1, env.n_agents) - 0.5, -0.5, env.n_actions - 0.5, color="#DDDDDD", linewidth=0.5)
    axis.vlines(np.arange(1, env.n_actions) - 0.5, -0.5, env.n_agents - 0.5, color="#DDDDDD", linewidth=0.5)
