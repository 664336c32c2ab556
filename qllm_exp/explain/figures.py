"""The two figures of a credit-assignment function: its credit along an episode, and what its credit depends on.

Shapes: T steps, n agents. `credit` is [T, n] and `actions` [T, n] throughout.
"""

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.attribution import Dependence, credits
from qllm_exp.explain.episodes import Entity, Episode, find_entities, find_events, key_steps
from qllm_exp.explain.scene import agent_colour, agent_line, draw_joint_action, draw_scene, is_pitch, legend_marker

if TYPE_CHECKING:  # matplotlib is imported only when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RANDOM_QS = 32  # samples of q for the band of a function that is not affine
_SHOWN_FIELDS = 24  # rows of the heat map; the tables have all fields
_WIDTH = 7.2  # inches: two columns of a paper
_MARKERS = "os^Dv<>"
_STEP_LETTERS = "abcd"
# Tol's light scheme: distinguishable for colour-blind readers, as backgrounds of black text.
_FILLS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#44BB99", "#BBCC33", "#AAAA00", "#99DDFF")
_IDLE_FILL, _MOVE_FILL, _OTHER_FILL = "#FFFFFF", "#DDDDDD", "#999999"
_ARROWS = {
    (-1, 0): "←",
    (1, 0): "→",
    (0, 1): "↑",
    (0, -1): "↓",
    (-1, 1): "↖",
    (1, 1): "↗",
    (-1, -1): "↙",
    (1, -1): "↘",
}
_DIRECTIONS = {
    "left": (-1, 0),
    "west": (-1, 0),
    "right": (1, 0),
    "east": (1, 0),
    "up": (0, 1),
    "top": (0, 1),
    "north": (0, 1),
    "down": (0, -1),
    "bottom": (0, -1),
    "south": (0, -1),
}
_IDLE = {"none", "idle", "noop", "stay", "no push"}
_EVENT_STYLE: Any = {"colors": "#000000", "linelengths": 0.7, "linewidths": 1.5}
# Settings of matplotlib with which the figures are drawn and saved.
FONTS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,  # embeds text as TrueType fonts, as journals require
}


def credit_figure(
    function: StoredFunction,
    env: TeamEnv,
    episode: Episode,
    affine: bool,
    enforce: bool,
    generator: torch.Generator,
    title: str,
) -> "Figure":
    """Plot what happens at each step of an episode, and below it the scenes at the most informative steps.

    Args:
        function: that gives the credit.
        env: its task.
        episode: to show.
        affine: whether the function is affine in q; if not, a band of credit over random q is drawn as well.
        enforce: whether the IGM gate is on.
        generator: of the random q.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    states = episode.states[:-1]
    length, n = episode.actions.shape
    credit = credits(function, affine, enforce, states)
    events = dict(sorted(find_events(env.layout, episode.states).items(), key=lambda event: event[1])[:6])
    steps = key_steps(episode, credit)
    entities = find_entities(env.layout, episode.states)
    columns = 2 if is_pitch(entities) else 4  # scenes side by side
    agents_per_line = 2 if columns == 2 else 1  # in the text below a scene
    text_lines = math.ceil(n / agents_per_line)
    scene_height = 1.9 if entities else 0.6 + 0.2 * n
    heights = [1.9, 0.8, 0.16 * n + 0.02]
    if events:
        heights.append(0.15 * len(events) + 0.1)
    upper_height = sum(heights) + 1.3
    lower_height = math.ceil(len(steps) / columns) * (scene_height + 0.13 * text_lines) + 0.4
    figure = Figure(figsize=(_WIDTH, upper_height + lower_height), layout="constrained")
    figure.suptitle(title, fontsize=8)
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[upper_height, lower_height])

    panels = upper.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    if not affine:
        samples = [torch.randn(length, n, generator=generator) for _ in range(_RANDOM_QS)]
        sampled_credit = torch.stack([credits(function, affine, enforce, states, q) for q in samples])
        low, high = torch.quantile(sampled_credit, torch.tensor([0.1, 0.9]), dim=0)
        for agent in range(n):
            band_style = {"color": agent_colour(agent), "alpha": 0.15, "linewidth": 0}
            panels[0].fill_between(range(length), low[:, agent].numpy(), high[:, agent].numpy(), **band_style)
    _credit_lines(panels[0], credit, steps)
    panels[0].set_ylabel("credit $\\partial Q_\\mathrm{tot}/\\partial Q_i$" + ("" if affine else " at $q=0$"))
    panels[1].bar(range(length), episode.rewards.tolist(), width=0.8, color="#555555")
    panels[1].axhline(0, color="#000000", linewidth=0.6)
    if not bool(episode.rewards.any()):
        panels[1].set_ylim(-1, 1)
        panels[1].text(0.5, 0.7, "no reward in this episode", transform=panels[1].transAxes, ha="center", va="center")
    panels[1].set_ylabel("reward")
    _action_strip(panels[2], env, episode.actions)
    if events:
        panels[3].eventplot(list(events.values()), lineoffsets=range(len(events)), **_EVENT_STYLE)
        panels[3].set_yticks(range(len(events)), list(events))
        panels[3].set_ylim(len(events) - 0.4, -0.6)
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(-0.6, length - 0.4)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)

    scenes = lower.subplots(math.ceil(len(steps) / columns), columns, squeeze=False)
    for axis in scenes.flat[len(steps) :]:
        axis.set_visible(False)
    for letter, axis, step in zip(_STEP_LETTERS, scenes.flat, steps, strict=False):
        axis.set_title(f"({letter}) step {step}, reward {float(episode.rewards[step]):.3g}")
        axis.set_xlabel(_scene_caption(env, episode, credit, step, entities, agents_per_line), fontsize=7)
        if entities:
            draw_scene(axis, env, entities, step, credit)
        else:
            draw_joint_action(axis, env, episode.actions[step])
    kinds = dict.fromkeys(entity.kind for entity in entities if entity.kind != "agent")
    if kinds:
        handles = [legend_marker(kind) for kind in kinds]
        lower.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _scene_caption(
    env: TeamEnv, episode: Episode, credit: Tensor, step: int, entities: list[Entity], agents_per_line: int
) -> str:
    """Each agent's action and credit at a step, with its level if it has one."""
    levels = {entity.index: entity.level for entity in entities if entity.kind == "agent"}
    texts = []
    for agent, action in enumerate(episode.actions[step].tolist()):
        level = levels.get(agent)
        level_text = "" if level is None else f" (level {level[step]:g})"
        name = env.task.actions[action].partition(":")[0]
        texts.append(f"{agent}{level_text}: {name}, {credit[step, agent]:.2f}")
    starts = range(0, len(texts), agents_per_line)
    return "\n".join("    ".join(texts[start : start + agents_per_line]) for start in starts)


def _credit_lines(axis: "Axes", credit: Tensor, steps: list[int]) -> None:
    """Plot a line per agent, and mark the steps whose scenes are shown. credit: [T, n]."""
    length, n = credit.shape
    for agent in range(n):
        axis.plot(
            credit[:, agent].numpy(),
            marker=_MARKERS[agent % len(_MARKERS)],
            markevery=max(1, length // 20),
            markersize=3,
            **agent_line(agent),
        )
    axis.axhline(1, color="#999999", linewidth=0.8, zorder=0, label="equal credit (VDN)")
    for letter, step in zip(_STEP_LETTERS, steps, strict=False):
        axis.axvline(step, color="#555555", linewidth=0.7, linestyle=":", zorder=0)
        axis.text(step, 1.01, letter, transform=axis.get_xaxis_transform(), ha="center", va="bottom")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=min(n + 1, 6), frameon=False, borderaxespad=0)
    axis.margins(y=0.08)


def _action_strip(axis: "Axes", env: TeamEnv, actions: Tensor) -> None:
    """Draw a row per agent and a cell per step: arrows for moves, colours for the kinds of other actions. actions: [T, n]."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    symbols = [action_symbol(action.partition(":")[0]) for action in env.task.actions]
    kinds = [kind for kind, _ in symbols]
    taken = Counter(kinds[action] for action in actions.flatten().tolist())
    fills = {"idle": _IDLE_FILL, "move": _MOVE_FILL}
    other_kinds = sorted((kind for kind in taken if kind not in fills), key=kinds.index)
    for number, kind in enumerate(other_kinds):
        fills[kind] = _FILLS[number] if number < len(_FILLS) else _OTHER_FILL
    length, n = actions.shape
    axis.imshow(
        np.array([[to_rgb(fills[kinds[action]]) for action in row] for row in actions.T.tolist()]),
        aspect="auto",
        interpolation="nearest",
    )
    axis.hlines(np.arange(1, n) - 0.5, -0.5, length - 0.5, color="#FFFFFF", linewidth=1.5)
    if length <= 60:
        font = 7 if length <= 40 else 5.5
        for step, row in enumerate(actions.tolist()):
            for agent, action in enumerate(row):
                axis.text(step, agent, symbols[action][1], ha="center", va="center", fontsize=font)
    axis.set_yticks(range(n), [f"agent {agent}" for agent in range(n)])
    handles = [Patch(facecolor=fills[kind], edgecolor="#999999", label=kind) for kind in fills if taken[kind]]
    axis.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=9,
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )


def action_symbol(action: str) -> tuple[str, str]:
    """Return the kind of an action, which gives its colour, and the symbol in its cell.

    'push left' is a move, 'long_pass' a pass, 'release_sprint' a release; 'action 3' is a kind of its own with the symbol 3.
    """
    words = re.split(r"[\s_]+", action.lower())
    directions = [_DIRECTIONS[word] for word in words if word in _DIRECTIONS]
    if directions:
        x, y = (sum(components) for components in zip(*directions, strict=True))
        return "move", _ARROWS.get((x, y), "")
    if action.lower() in _IDLE:
        return "idle", ""
    if words[-1].isdigit():
        return action, words[-1]
    return ("release" if words[0] == "release" else words[-1]), ""


def dependence_figure(measured: Dependence, n: int, title: str) -> "Figure":
    """Plot a heat map of kinds and most important fields against agents, and beside it the curves of the leading fields.

    Args:
        measured: dependence of credit on the state.
        n: number of agents.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    kinds, fields = measured.by_grouping("kind"), measured.by_grouping("field")
    rows, hidden = [*kinds, *fields[:_SHOWN_FIELDS]], fields[_SHOWN_FIELDS:]
    height = max(0.19 * len(rows) + 1.2, 1.5 * len(measured.curves) + 0.5, 2.8)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=8)
    widths = [1.25, 1] if measured.curves else [1]
    (halves,) = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)
    axis = halves[0].subplots()
    values = np.array([row.by_agent for row in rows])
    largest = float(values.max()) or 1.0
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=largest, aspect="auto")
    if n <= 8:
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            colour = "#FFFFFF" if value > 0.6 * largest else "#000000"
            axis.text(column, row, _cell_text(value), ha="center", va="center", fontsize=6.5, color=colour)
    axis.axhline(len(kinds) - 0.5, color="#000000", linewidth=1)
    axis.set_xticks(range(n), [f"agent {i}" if n <= 5 else str(i) for i in range(n)])
    axis.set_yticks(range(len(rows)), [row.label.replace("_", " ") for row in rows])
    captions = ["agent"] if n > 5 else []
    if hidden:
        maximum = max(max(row.by_agent) for row in hidden)
        captions.append(f"{len(hidden)} more fields: {'at most ' if maximum else ''}{maximum:.2g}")
    axis.set_xlabel("\n".join(captions))
    halves[0].colorbar(image, ax=axis, label="mean absolute change of credit", fraction=0.05)
    if measured.curves:
        panels = halves[1].subplots(len(measured.curves), 1, squeeze=False).flat
        for panel, curve in zip(panels, measured.curves, strict=True):
            for agent in range(n):
                panel.plot(curve.values.numpy(), curve.credit[:, agent].numpy(), **agent_line(agent))
            panel.set_xlabel(curve.label.replace("_", " "))
            panel.set_ylabel("mean credit")
        handles = panel.get_lines()
        halves[1].legend(handles=handles, loc="outside upper center", ncols=n if n <= 4 else 3, frameon=False)
    return figure


def _cell_text(importance: float) -> str:
    if importance == 0:
        return "0"
    return f"{importance:.3f}" if importance >= 0.001 else "<.001"
