"""One picture of an episode at one step: the scene, the credit of each agent now and so far, and what was done for what.

The scene is that of qllm_exp/explain/scene.py. Where the states tell no places, it is the joint action if they tell
of actions only, and otherwise the state's values over time.

Shapes: T steps, n agents, S columns of the state.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout
from qllm_exp.explain.episodes import entities
from qllm_exp.explain.scene import (
    agent_colour,
    agent_line,
    draw_agent,
    draw_choices,
    draw_ground,
    draw_taken,
    draw_things,
    is_pitch,
    marker,
)
from qllm_exp.explain.watch_episode import Played, share

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from matplotlib.axes import Axes
    from PIL.Image import Image

_WIDTH, _DPI = 5.0, 180  # inches and dots per inch: 900 pixels
_LINE = 0.15  # inches of a line of text
_SHOWN_VALUES = 20  # rows of the map of a state's values
FONTS: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 6.5,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
}
_NOT_MIXED = "own value $q_i$ (no mixing: no credit)"
_CREDIT = r"share of credit ($\partial Q_\mathrm{tot}/\partial q_i$)"


class Picture:
    """Draws the steps of one episode, one after the other, into one figure.

    Args:
        env: of the episode. played: the episode.
        title: two lines at most.
    """

    def __init__(self, env: TeamEnv, played: Played, title: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.env, self.played = env, played
        episode = played.episode
        self.length, self.n = episode.actions.shape
        self.things = entities(env.layout, episode.states)
        self.levels = {
            thing.index: f" (level {float(thing.level[0]):g})"
            for thing in self.things
            if thing.kind == "agent" and thing.level is not None
        }
        self.values = (
            None if self.things or _tells_actions_only(env.layout) else StateValues(env.layout, episode.states)
        )
        self.shown: Tensor | None  # [T, n] what bars and lines show
        if played.credit is not None:
            self.shown, self.heading = share(played.credit), _CREDIT
        else:
            self.shown, self.heading = played.qs, _NOT_MIXED
        sizes = torch.ones(self.length, self.n) if played.credit is None else played.credit
        self.sizes = torch.cat([sizes, sizes[-1:]])  # for the scene after the last step

        self.across = 1 if self.n == 1 else 2 if self.n in (2, 4) else 3  # actions on a line
        wide = is_pitch(self.things)
        middle = max(1.7 if wide else 2.35, 1.2 + 0.18 * self.n)
        below, above = 0.12 + _LINE * (1.3 + math.ceil(self.n / self.across)), 0.5
        height = _even(above + middle + 0.3 + below)
        self.figure: Figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
        canvas: Any = FigureCanvasAgg  # matplotlib leaves its methods untyped
        self.canvas = canvas(self.figure)
        self.figure.text(0.5, 1 - 0.08 / height, title, ha="center", va="top", linespacing=1.35)

        def room(left: float, bottom: float, width: float, tall: float) -> "Axes":
            """An axis in inches from the lower left corner of the middle part."""
            place = (left / _WIDTH, (bottom + below + 0.3) / height, width / _WIDTH, tall / height)
            return self.figure.add_axes(place)

        left, scene = (0.12, 2.5) if wide else (0.32, 2.1)
        if self.values is not None:
            left, scene = 1.25, 1.2
        elif not self.things:
            left, scene = 0.5, 1.9
        self.scene = room(left, 0.02, scene, middle - 0.05)
        at = left + scene + 0.52
        bars = 0.22 + 0.15 * self.n
        self.bars = room(at, middle - bars - 0.1, _WIDTH - at - 0.72, bars)
        self.lines = room(at, 0.02, _WIDTH - at - 0.12, middle - bars - 0.5)
        self.words = self.figure.add_axes((0.02, 0, 0.96, below / height))
        kinds = dict.fromkeys(thing.kind for thing in self.things if thing.kind != "agent")
        if kinds:
            self.figure.legend(
                handles=[marker(kind) for kind in kinds],
                loc="upper center",
                bbox_to_anchor=((left + scene / 2) / _WIDTH, (below + 0.3 - (0 if wide else 0.12)) / height),
                ncols=len(kinds),
                frameon=False,
                fontsize=6,
                borderaxespad=0,
                handletextpad=0.1,
            )
        self._draw_ground()
        self.canvas.draw()
        self.ground = self.canvas.copy_from_bbox(self.figure.bbox)  # only what differs is drawn anew at each step
        self.same = {axis: set(axis.get_children()) for axis in (self.scene, self.bars, self.lines, self.words)}

    def _draw_ground(self) -> None:
        """What is the same at every step."""
        if self.things:
            draw_ground(self.scene, self.env, self.things)
        elif self.values is not None:
            self.values.draw_ground(self.scene)
        else:
            draw_choices(self.scene, self.env)
            names = [_named(action).replace(" ", "\n") for action in self.env.task.actions]
            self.scene.set_xticks(range(len(names)), names)
            self.scene.set_aspect("equal")
        bars, lines, shares = self.bars, self.lines, self.played.credit is not None
        bars.set_title(self.heading if self.shown is not None else "this algorithm has no individual Qs", pad=3)
        bars.set_yticks(range(self.n), [f"agent {agent}" for agent in range(self.n)])
        bars.set_ylim(self.n - 0.45, -0.55)
        lines.set_xlim(-0.5, self.length - 0.5)
        lines.set_xlabel("step", labelpad=1)
        lines.locator_params(axis="x", integer=True, nbins=6)
        for axis in (bars, lines):
            axis.tick_params(length=2, pad=1.5)
            axis.spines[["top", "right"]].set_visible(False)
        self.words.set_axis_off()
        self.words.set_xlim(0, 1)
        self.words.set_ylim(1.8 + math.ceil(self.n / self.across), 0)
        if self.shown is None:
            return
        low, high = min(0.0, float(self.shown.amin())), max(0.0, float(self.shown.amax()))
        margin = 0.05 if shares else 0.05 * ((high - low) or 1.0)
        least = float(self.shown.amin()) if shares else low
        lines.set_ylim(least - margin, high + margin)
        bars.set_xlim((-1.0 if low < 0 else 0.0, 1.0) if shares else (low, high + margin))
        bars.locator_params(axis="x", nbins=4)
        bars.axvline(0, color="#000000", linewidth=0.6)
        if shares:
            bars.set_xticks([-1, 0, 1] if low < 0 else [0, 0.25, 0.5, 0.75, 1])
            bars.xaxis.set_major_formatter("{x:.0%}")
            lines.yaxis.set_major_formatter("{x:.0%}")
            lines.axhline(1 / self.n, color="#999999", linewidth=0.8, zorder=0)
            lines.set_title("grey: equal credit (VDN)", fontsize=6, pad=2, loc="right")

    def image(self, step: int) -> "Image":
        """The picture of step 0 to T - 1: the state it was chosen in, the joint action and its reward; T: the end."""
        from PIL import Image

        last = min(step, self.length - 1)
        if self.things:
            draw_things(self.scene, self.env, self.things, step, self.sizes)
        elif self.values is not None:
            self.values.draw(self.scene, step)
        else:
            draw_taken(self.scene, self.played.episode.actions[last])
        if self.shown is not None:
            self._bars(last)
            self._lines(self.shown[: last + 1])
        self.lines.axvline(last, color="#555555", linewidth=0.8, zorder=0)
        self._words(step)
        self.canvas.restore_region(self.ground)
        for axis, same in self.same.items():
            fresh = [artist for artist in axis.get_children() if artist not in same]
            for artist in sorted(fresh, key=lambda one: one.get_zorder()):
                axis.draw_artist(artist)
                artist.remove()
        return Image.fromarray(np.array(self.canvas.buffer_rgba())).convert("RGB")

    def _bars(self, step: int) -> None:
        assert self.shown is not None
        axis, now, credit = self.bars, self.shown[step].tolist(), self.played.credit
        axis.barh(range(self.n), now, color=[agent_colour(agent) for agent in range(self.n)], height=0.7)
        for agent, value in enumerate(now):
            told = _number(value) if credit is None else f"{value:.0%} ({_number(float(credit[step, agent]))})"
            axis.text(1.04, agent, told, transform=axis.get_yaxis_transform(), va="center", fontsize=6.5)

    def _lines(self, so_far: Tensor) -> None:
        """so_far: [step + 1, n]."""
        for agent in range(self.n):
            self.lines.plot(so_far[:, agent].numpy(), **agent_line(agent))
            self.lines.plot(len(so_far) - 1, float(so_far[-1, agent]), "o", color=agent_colour(agent), markersize=3)

    def _words(self, step: int) -> None:
        """Step, reward and return, and each agent's action below."""
        axis, episode, env = self.words, self.played.episode, self.env
        if step == self.length:
            said = f"after {self.length} steps: {episode.ended}        return {self.played.total:.4g}"
        else:
            so_far = self.played.total if step == self.length - 1 else float(self.played.returns[step])
            reward = float(episode.rewards[step])
            said = f"step {step} of {self.length}        reward {reward:.3g}        return so far {so_far:.4g}"
        axis.text(0.5, 0.5, said, ha="center", va="center", fontsize=8)
        if step == self.length:
            return
        for agent, action in enumerate(episode.actions[step].tolist()):
            x, y = agent % self.across / self.across + 0.02, 1.8 + agent // self.across
            draw_agent(axis, x, y, agent, 8.5, 6)
            axis.text(x + 0.02, y, f"{_named(env.task.actions[action])}{self.levels.get(agent, '')}", va="center")


class StateValues:
    """The named values of a state over time, each from its lowest to its highest of the episode.

    Values that never change are left out; of many the 20 that change most, by the sum of their steps' changes.

    Args:
        layout: names the columns. states: [T + 1, S].
    """

    def __init__(self, layout: StateLayout, states: Tensor) -> None:
        low, high = states.amin(0), states.amax(0)
        scaled = (states - low) / torch.where(high > low, high - low, 1.0)
        change = scaled.diff(dim=0).abs().sum(0)
        moving = int((change > 0).sum())
        columns = sorted(change.argsort(descending=True, stable=True)[: min(moving, _SHOWN_VALUES)].tolist())
        names = [
            one.label if len(one.components) == 1 else f"{one.label} {component}"
            for one in layout
            for component in one.components
        ]
        self.names = [_shortened(names[column]) for column in columns]
        self.values = scaled[:, columns].T.numpy()
        self.note = f"step ({len(columns)} of {states.shape[1]} state values; dark: low)"

    def draw_ground(self, axis: "Axes") -> None:
        """What is the same at every step."""
        axis.set_xlabel(self.note, labelpad=1)
        rows, columns = self.values.shape
        if not rows:
            axis.text(0.5, 0.5, "no value of the\nstate changes", transform=axis.transAxes, ha="center", va="center")
        axis.set_xlim(-0.5, columns - 0.5)
        axis.set_ylim(rows - 0.5, -0.5)
        axis.set_yticks(range(rows), self.names, fontsize=5)
        axis.tick_params(length=2, pad=1.5)
        axis.locator_params(axis="x", integer=True, nbins=4)

    def draw(self, axis: "Axes", step: int) -> None:
        """The values up to states[step]."""
        seen = self.values[:, : step + 1]
        size = (-0.5, step + 0.5, len(seen) - 0.5, -0.5)
        if len(seen):
            axis.imshow(seen, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=size)


def _tells_actions_only(layout: StateLayout) -> bool:
    return all(one.name == "last_action" for one in layout)


def _shortened(name: str) -> str:
    words = name.replace("_", " ").replace("component ", "")
    return words if len(words) <= 28 else f"{words[:12]}…{words[-15:]}"


def _named(action: str) -> str:
    """The name of an action, without what it does."""
    return action.partition(":")[0].replace("_", " ")


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _even(inches: float) -> float:
    """The next height with an even number of pixels, as video needs."""
    return 2 * math.ceil(inches * _DPI / 2) / _DPI
