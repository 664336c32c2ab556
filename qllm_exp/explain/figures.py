"""The two figures of a credit-assignment function: credit along an episode, and what the credit depends on.

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
from qllm_exp.explain.episodes import Entity, Episode, entities, events, moments
from qllm_exp.explain.scene import agent_colour, agent_line, draw_joint_action, draw_scene, is_pitch, marker

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RANDOM_QS = 32  # for the band of a function that is not affine
_SHOWN_FIELDS = 24  # rows of the heat map; the tables have all
_WIDTH = 7.2  # inches, two columns of a paper
_MARKERS = "os^Dv<>"
# Tol's light scheme: colour-blind safe as backgrounds of black text.
_FILLS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#44BB99", "#BBCC33", "#AAAA00", "#99DDFF")
_IDLE_FILL, _MOVE_FILL, _OTHER_FILL = "#FFFFFF", "#DDDDDD", "#999999"
_ARROWS = {
    **{(-1, 0): "←", (1, 0): "→", (0, 1): "↑", (0, -1): "↓"},
    **{(-1, 1): "↖", (1, 1): "↗", (-1, -1): "↙", (1, -1): "↘"},
}
_DIRECTIONS = {
    **{"left": (-1, 0), "west": (-1, 0), "right": (1, 0), "east": (1, 0)},
    **{"up": (0, 1), "top": (0, 1), "north": (0, 1), "down": (0, -1), "bottom": (0, -1), "south": (0, -1)},
}
_IDLE = {"none", "idle", "noop", "stay", "no push"}
_EVENTS: Any = {"colors": "#000000", "linelengths": 0.7, "linewidths": 1.5}
# matplotlib's settings under which the figures are drawn and saved
FONTS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,  # text stays text, as journals ask
}


def credit_figure(
    entry: StoredFunction,
    env: TeamEnv,
    episode: Episode,
    affine: bool,
    enforce: bool,
    generator: torch.Generator,
    title: str,
) -> "Figure":
    """Above, what happens at each step; below, the scene at the most telling steps.

    Args:
        affine: whether the function is affine in q; where it is not, a band of credit over random q is drawn as well.
        enforce: whether the IGM gate is on.
        generator: of the random q.
    """
    from matplotlib.figure import Figure

    acted_in = episode.states[:-1]
    length, n = episode.actions.shape
    credit = credits(entry, affine, enforce, acted_in)
    happened = dict(sorted(events(env.layout, episode.states).items(), key=lambda one: one[1])[:6])
    steps = moments(episode, credit)
    things = entities(env.layout, episode.states)
    across = 2 if is_pitch(things) else 4
    lines = n if across == 4 else math.ceil(n / 2)  # of text below a scene
    scene = 1.9 if things else 0.6 + 0.2 * n
    heights = [1.9, 0.8, 0.16 * n + 0.02, *([0.15 * len(happened) + 0.1] if happened else [])]
    above, below = sum(heights) + 1.3, math.ceil(len(steps) / across) * (scene + 0.13 * lines) + 0.4
    figure = Figure(figsize=(_WIDTH, above + below), layout="constrained")
    figure.suptitle(title, fontsize=8)
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[above, below])

    panels = upper.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    if not affine:
        every = [torch.randn(length, n, generator=generator) for _ in range(_RANDOM_QS)]
        band = torch.stack([credits(entry, affine, enforce, acted_in, q) for q in every])
        low, high = torch.quantile(band, torch.tensor([0.1, 0.9]), dim=0)
        for agent in range(n):
            shade = {"color": agent_colour(agent), "alpha": 0.15, "linewidth": 0}
            panels[0].fill_between(range(length), low[:, agent].numpy(), high[:, agent].numpy(), **shade)
    _credit_lines(panels[0], credit, steps)
    panels[0].set_ylabel("credit $\\partial Q_\\mathrm{tot}/\\partial Q_i$" + ("" if affine else " at $q=0$"))
    panels[1].bar(range(length), episode.rewards.tolist(), width=0.8, color="#555555")
    panels[1].axhline(0, color="#000000", linewidth=0.6)
    if not bool(episode.rewards.any()):
        panels[1].set_ylim(-1, 1)
        panels[1].text(0.5, 0.7, "no reward in this episode", transform=panels[1].transAxes, ha="center", va="center")
    panels[1].set_ylabel("reward")
    _action_strip(panels[2], env, episode.actions)
    if happened:
        panels[3].eventplot(list(happened.values()), lineoffsets=range(len(happened)), **_EVENTS)
        panels[3].set_yticks(range(len(happened)), list(happened))
        panels[3].set_ylim(len(happened) - 0.4, -0.6)
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(-0.6, length - 0.4)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)

    scenes = lower.subplots(math.ceil(len(steps) / across), across, squeeze=False)
    for axis in scenes.flat[len(steps) :]:
        axis.set_visible(False)
    for place, (axis, step) in enumerate(zip(scenes.flat, steps, strict=False)):
        axis.set_title(f"({'abcd'[place]}) step {step}, reward {float(episode.rewards[step]):.3g}")
        axis.set_xlabel(_told(env, episode, credit, step, things, 1 if across == 4 else 2), fontsize=7)
        if things:
            draw_scene(axis, env, things, step, credit)
        else:
            draw_joint_action(axis, env, episode.actions[step])
    kinds = dict.fromkeys(thing.kind for thing in things if thing.kind != "agent")
    if kinds:
        handles = [marker(kind) for kind in kinds]
        lower.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _told(env: TeamEnv, episode: Episode, credit: Tensor, step: int, things: list[Entity], per_line: int) -> str:
    """Each agent's action and credit at a step, with its level where it has one."""
    agents = {thing.index: thing for thing in things if thing.kind == "agent" and thing.level is not None}
    each = []
    for agent, action in enumerate(episode.actions[step].tolist()):
        level = agents[agent].level if agent in agents else None
        of_level = "" if level is None else f" (level {level[step]:g})"
        each.append(f"{agent}{of_level}: {env.task.actions[action].partition(':')[0]}, {credit[step, agent]:.2f}")
    return "\n".join("    ".join(each[start : start + per_line]) for start in range(0, len(each), per_line))


def _credit_lines(axis: "Axes", credit: Tensor, steps: list[int]) -> None:
    length, n = credit.shape
    for agent in range(n):
        every = max(1, length // 20)
        axis.plot(
            credit[:, agent].numpy(),
            marker=_MARKERS[agent % len(_MARKERS)],
            markevery=every,
            markersize=3,
            **agent_line(agent),
        )
    axis.axhline(1, color="#999999", linewidth=0.8, zorder=0, label="equal credit (VDN)")
    for place, step in enumerate(steps):
        axis.axvline(step, color="#555555", linewidth=0.7, linestyle=":", zorder=0)
        axis.text(step, 1.01, "abcd"[place], transform=axis.get_xaxis_transform(), ha="center", va="bottom")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=min(n + 1, 6), frameon=False, borderaxespad=0)
    axis.margins(y=0.08)


def _action_strip(axis: "Axes", env: TeamEnv, actions: Tensor) -> None:
    """A row per agent and a cell per step: arrows for moves, colours for the kinds of other actions."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    signs = [action_sign(action.partition(":")[0]) for action in env.task.actions]
    taken = Counter(kind for kind, _ in (signs[action] for action in actions.flatten().tolist()))
    fills = {"idle": _IDLE_FILL, "move": _MOVE_FILL}
    named = sorted((kind for kind in taken if kind not in fills), key=[kind for kind, _ in signs].index)
    fills |= {kind: _FILLS[place] if place < len(_FILLS) else _OTHER_FILL for place, kind in enumerate(named)}
    length, n = actions.shape
    axis.imshow(
        np.array([[to_rgb(fills[signs[action][0]]) for action in row] for row in actions.T.tolist()]),
        aspect="auto",
        interpolation="nearest",
    )
    axis.hlines(np.arange(1, n) - 0.5, -0.5, length - 0.5, color="#FFFFFF", linewidth=1.5)
    if length <= 60:
        for step, row in enumerate(actions.tolist()):
            for agent, action in enumerate(row):
                axis.text(step, agent, signs[action][1], ha="center", va="center", fontsize=7 if length <= 40 else 5.5)
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


def action_sign(action: str) -> tuple[str, str]:
    """The kind of an action, by which it is coloured, and a sign for its cell.

    'push left' is a move, 'long_pass' a pass, 'release_sprint' a release, 'action 3' its own kind with the sign 3.
    """
    words = re.split(r"[\s_]+", action.lower())
    toward = [_DIRECTIONS[word] for word in words if word in _DIRECTIONS]
    if toward:
        return "move", _ARROWS.get((sum(x for x, _ in toward), sum(y for _, y in toward)), "")
    if action.lower() in _IDLE:
        return "idle", ""
    if words[-1].isdigit():
        return action, words[-1]
    return ("release" if words[0] == "release" else words[-1]), ""


def dependence_figure(depends: Dependence, n: int, title: str) -> "Figure":
    """A heat map of kinds and leading fields against agents; beside it the curves of the leading fields."""
    from matplotlib.figure import Figure

    kinds, fields = depends.of("kind"), depends.of("field")
    rows, hidden = [*kinds, *fields[:_SHOWN_FIELDS]], fields[_SHOWN_FIELDS:]
    height = max(0.19 * len(rows) + 1.2, 1.5 * len(depends.curves) + 0.5, 2.8)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=8)
    shares = [1.25, 1] if depends.curves else [1]
    (halves,) = figure.subfigures(1, len(shares), squeeze=False, width_ratios=shares)
    axis = halves[0].subplots()
    values = np.array([row.by_agent for row in rows])
    largest = float(values.max()) or 1.0
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=largest, aspect="auto")
    for row, column in np.ndindex(values.shape if n <= 8 else (0, 0)):
        value = values[row, column]
        text = "0" if value == 0 else f"{value:.3f}" if value >= 0.001 else "<.001"
        colour = "#FFFFFF" if value > 0.6 * largest else "#000000"
        axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    axis.axhline(len(kinds) - 0.5, color="#000000", linewidth=1)
    axis.set_xticks(range(n), [f"agent {i}" if n <= 5 else str(i) for i in range(n)])
    axis.set_yticks(range(len(rows)), [row.label.replace("_", " ") for row in rows])
    rest = max((max(row.by_agent) for row in hidden), default=0.0)
    more = f"{len(hidden)} more fields: {'at most ' if rest else ''}{rest:.2g}" if hidden else ""
    axis.set_xlabel("\n".join(filter(None, ["" if n <= 5 else "agent", more])))
    halves[0].colorbar(image, ax=axis, label="mean absolute change of credit", fraction=0.05)
    if depends.curves:
        panels = halves[1].subplots(len(depends.curves), 1, squeeze=False).flat
        for panel, drawn in zip(panels, depends.curves, strict=True):
            for agent in range(n):
                panel.plot(drawn.values.numpy(), drawn.credit[:, agent].numpy(), **agent_line(agent))
            panel.set_xlabel(drawn.label.replace("_", " "))
            panel.set_ylabel("mean credit")
        handles = panel.get_lines()
        halves[1].legend(handles=handles, loc="outside upper center", ncols=n if n <= 4 else 3, frameon=False)
    return figure
