"""One frame of an animated episode: the scene, the credit of each agent now and so far, the joint action and the reward.

The scene is that of qllm_exp/explain/scene.py. If the states contain no places, it is the joint action if they contain
actions only, and otherwise the values of the state over time.

Shapes: T steps, n agents, S columns of the state.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateLayout
from qllm_exp.explain.episodes import find_entities
from qllm_exp.explain.scene import (
    agent_colour,
    agent_line,
    draw_action_grid,
    draw_agent,
    draw_background,
    draw_chosen_actions,
    draw_entities,
    is_pitch,
    legend_marker,
)
from qllm_exp.explain.watch_episode import PlayedEpisode, credit_share

if TYPE_CHECKING:  # matplotlib and Pillow are imported only when something is drawn
    from matplotlib.axes import Axes
    from PIL.Image import Image

_WIDTH, _DPI = 5.0, 180  # inches and dots per inch: 900 pixels
_TEXT_LINE = 0.15  # inches of a line of text
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
_NO_QS = "this algorithm has no individual Qs"
_CREDIT = r"share of credit ($\partial Q_\mathrm{tot}/\partial q_i$)"


class FrameRenderer:
    """Draws the frames of one episode, one after the other, into one figure.

    What is the same at every step is drawn once; `frame` draws only what differs.

    Args:
        env: of the episode.
        played: the episode.
        title: at most two lines.
    """

    def __init__(self, env: TeamEnv, played: PlayedEpisode, title: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.env, self.played = env, played
        episode = played.episode
        self.length, self.n = episode.actions.shape
        self.entities = find_entities(env.layout, episode.states)
        self.levels = {
            entity.index: f" (level {float(entity.level[0]):g})"
            for entity in self.entities
            if entity.kind == "agent" and entity.level is not None
        }
        self.state_values: StateValues | None = None
        if not self.entities and not _has_only_actions(env.layout):
            self.state_values = StateValues(env.layout, episode.states)
        self.agent_values: Tensor | None  # [T, n] what bars and lines show
        if played.credit is not None:
            self.agent_values, self.heading = credit_share(played.credit), _CREDIT
            sizes = played.credit
        else:
            self.agent_values = played.qs
            self.heading = _NOT_MIXED if played.qs is not None else _NO_QS
            sizes = torch.ones(self.length, self.n)
        self.sizes = torch.cat([sizes, sizes[-1:]])  # of agents in the scene, also after the last step

        self.actions_per_line = 3
        if self.n in (2, 4):
            self.actions_per_line = 2
        elif self.n == 1:
            self.actions_per_line = 1
        caption_lines = math.ceil(self.n / self.actions_per_line)
        # The figure from top to bottom, in inches: title, scene with bars and lines, labels of the axes, caption.
        wide = is_pitch(self.entities)
        middle_height = max(1.7 if wide else 2.35, 1.2 + 0.18 * self.n)
        caption_height = 0.12 + _TEXT_LINE * (1.3 + caption_lines)
        height = _even(0.5 + middle_height + 0.3 + caption_height)
        self.figure: Figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
        canvas: Any = FigureCanvasAgg  # matplotlib leaves its methods untyped
        self.canvas = canvas(self.figure)
        self.figure.text(0.5, 1 - 0.08 / height, title, ha="center", va="top", linespacing=1.35)

        def add_axes(left: float, bottom: float, axes_width: float, axes_height: float) -> "Axes":
            """Add axes at a place in inches, measured from the lower left corner of the middle part."""
            bottom = (bottom + caption_height + 0.3) / height
            return self.figure.add_axes((left / _WIDTH, bottom, axes_width / _WIDTH, axes_height / height))

        left, scene_width = (0.12, 2.5) if wide else (0.32, 2.1)
        if self.state_values is not None:
            left, scene_width = 1.25, 1.2
        elif not self.entities:
            left, scene_width = 0.5, 1.9
        self.scene = add_axes(left, 0.02, scene_width, middle_height - 0.05)
        right = left + scene_width + 0.52
        bars_height = 0.22 + 0.15 * self.n
        self.bars = add_axes(right, middle_height - bars_height - 0.1, _WIDTH - right - 0.72, bars_height)
        self.lines = add_axes(right, 0.02, _WIDTH - right - 0.12, middle_height - bars_height - 0.5)
        self.caption = self.figure.add_axes((0.02, 0, 0.96, caption_height / height))
        self.caption.set_axis_off()
        self.caption.set_xlim(0, 1)
        self.caption.set_ylim(1.8 + caption_lines, 0)
        kinds = dict.fromkeys(entity.kind for entity in self.entities if entity.kind != "agent")
        if kinds:
            legend_y = caption_height + 0.3 - (0 if wide else 0.12)
            self.figure.legend(
                handles=[legend_marker(kind) for kind in kinds],
                loc="upper center",
                bbox_to_anchor=((left + scene_width / 2) / _WIDTH, legend_y / height),
                ncols=len(kinds),
                frameon=False,
                fontsize=6,
                borderaxespad=0,
                handletextpad=0.1,
            )
        self._draw_scene_background()
        self._draw_value_axes()
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        all_axes = (self.scene, self.bars, self.lines, self.caption)
        self.background_artists = {axis: set(axis.get_children()) for axis in all_axes}

    def _draw_scene_background(self) -> None:
        """Draw what is the same in the scene at every step."""
        if self.entities:
            draw_background(self.scene, self.env, self.entities)
        elif self.state_values is not None:
            self.state_values.draw_background(self.scene)
        else:
            draw_action_grid(self.scene, self.env)
            names = [_action_name(action).replace(" ", "\n") for action in self.env.task.actions]
            self.scene.set_xticks(range(len(names)), names)
            self.scene.set_aspect("equal")

    def _draw_value_axes(self) -> None:
        """Set titles, limits and ticks of the bars and lines."""
        bars, lines, shares = self.bars, self.lines, self.played.credit is not None
        bars.set_title(self.heading, pad=3)
        bars.set_yticks(range(self.n), [f"agent {agent}" for agent in range(self.n)])
        bars.set_ylim(self.n - 0.45, -0.55)
        lines.set_xlim(-0.5, self.length - 0.5)
        lines.set_xlabel("step", labelpad=1)
        lines.locator_params(axis="x", integer=True, nbins=6)
        for axis in (bars, lines):
            axis.tick_params(length=2, pad=1.5)
            axis.spines[["top", "right"]].set_visible(False)
        if self.agent_values is None:
            return
        low, high = min(0.0, float(self.agent_values.amin())), max(0.0, float(self.agent_values.amax()))
        if shares:
            lines.set_ylim(float(self.agent_values.amin()) - 0.05, high + 0.05)
            bars.set_xlim(-1.0 if low < 0 else 0.0, 1.0)
        else:
            margin = 0.05 * ((high - low) or 1.0)
            lines.set_ylim(low - margin, high + margin)
            bars.set_xlim(low, high + margin)
        bars.locator_params(axis="x", nbins=4)
        bars.axvline(0, color="#000000", linewidth=0.6)
        if shares:
            bars.set_xticks([-1, 0, 1] if low < 0 else [0, 0.25, 0.5, 0.75, 1])
            bars.xaxis.set_major_formatter("{x:.0%}")
            lines.yaxis.set_major_formatter("{x:.0%}")
            lines.axhline(1 / self.n, color="#999999", linewidth=0.8, zorder=0)
            lines.set_title("grey: equal credit (VDN)", fontsize=6, pad=2, loc="right")

    def frame(self, step: int) -> "Image":
        """Return the frame of a step: the state before it, the joint action and the reward.

        Args:
            step: 0 to T - 1; T for the frame of the end.
        """
        from PIL import Image

        last = min(step, self.length - 1)
        if self.entities:
            draw_entities(self.scene, self.env, self.entities, step, self.sizes)
        elif self.state_values is not None:
            self.state_values.draw(self.scene, step)
        else:
            draw_chosen_actions(self.scene, self.played.episode.actions[last])
        if self.agent_values is not None:
            self._draw_bars(last, self.agent_values[last].tolist())
            self._draw_lines(self.agent_values[: last + 1])
        self.lines.axvline(last, color="#555555", linewidth=0.8, zorder=0)
        self._draw_caption(step)
        self.canvas.restore_region(self.background)
        for axis, background_artists in self.background_artists.items():
            new_artists = [artist for artist in axis.get_children() if artist not in background_artists]
            for artist in sorted(new_artists, key=lambda artist: artist.get_zorder()):
                axis.draw_artist(artist)
                artist.remove()
        return Image.fromarray(np.array(self.canvas.buffer_rgba())).convert("RGB")

    def _draw_bars(self, step: int, values: list[float]) -> None:
        """Draw a bar per agent, and write beside it its value, with the credit if the value is a share of it."""
        axis, credit = self.bars, self.played.credit
        axis.barh(range(self.n), values, color=[agent_colour(agent) for agent in range(self.n)], height=0.7)
        for agent, value in enumerate(values):
            text = _number(value) if credit is None else f"{value:.0%} ({_number(float(credit[step, agent]))})"
            axis.text(1.04, agent, text, transform=axis.get_yaxis_transform(), va="center", fontsize=6.5)

    def _draw_lines(self, values: Tensor) -> None:
        """Draw a line per agent with a dot at its end. values: [step + 1, n]."""
        for agent in range(self.n):
            self.lines.plot(values[:, agent].numpy(), **agent_line(agent))
            self.lines.plot(len(values) - 1, float(values[-1, agent]), "o", color=agent_colour(agent), markersize=3)

    def _draw_caption(self, step: int) -> None:
        """Write step, reward and return, and each agent's action below."""
        axis, episode, env = self.caption, self.played.episode, self.env
        if step == self.length:
            text = f"after {self.length} steps: {episode.ended}        return {self.played.episode_return:.4g}"
            axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=8)
            return
        so_far = self.played.episode_return if step == self.length - 1 else float(self.played.returns[step])
        reward = float(episode.rewards[step])
        text = f"step {step} of {self.length}        reward {reward:.3g}        return so far {so_far:.4g}"
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=8)
        for agent, action in enumerate(episode.actions[step].tolist()):
            x = agent % self.actions_per_line / self.actions_per_line + 0.02
            y = 1.8 + agent // self.actions_per_line
            draw_agent(axis, x, y, agent, 8.5, 6)
            name = f"{_action_name(env.task.actions[action])}{self.levels.get(agent, '')}"
            axis.text(x + 0.02, y, name, va="center")


class StateValues:
    """The values of a state over time, each scaled from its lowest to its highest value in the episode.

    Values that never change are left out. If more than 20 change, those with the largest sum of changes are shown.

    Args:
        layout: of the state.
        states: [T + 1, S] of the episode.
    """

    def __init__(self, layout: StateLayout, states: Tensor) -> None:
        low, high = states.amin(0), states.amax(0)
        scaled = (states - low) / torch.where(high > low, high - low, 1.0)
        change = scaled.diff(dim=0).abs().sum(0)
        moving = int((change > 0).sum())
        columns = sorted(change.argsort(descending=True, stable=True)[: min(moving, _SHOWN_VALUES)].tolist())
        names = [
            field.label if len(field.components) == 1 else f"{field.label} {component}"
            for field in layout
            for component in field.components
        ]
        self.names = [_shortened(names[column]) for column in columns]
        self.values = scaled[:, columns].T.numpy()
        self.note = f"step ({len(columns)} of {states.shape[1]} state values; dark: low)"

    def draw_background(self, axis: "Axes") -> None:
        """Draw what is the same at every step."""
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
        """Draw the values up to states[step]."""
        values = self.values[:, : step + 1]
        extent = (-0.5, step + 0.5, len(values) - 0.5, -0.5)
        if len(values):
            axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)


def _has_only_actions(layout: StateLayout) -> bool:
    """Whether the state consists of the agents' last actions."""
    return all(field.name == "last_action" for field in layout)


def _shortened(name: str) -> str:
    """The name of a value, with at most 28 characters."""
    text = name.replace("_", " ").replace("component ", "")
    return text if len(text) <= 28 else f"{text[:12]}…{text[-15:]}"


def _action_name(action: str) -> str:
    """The name of an action, without its description."""
    return action.partition(":")[0].replace("_", " ")


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _even(inches: float) -> float:
    """Round a height up to an even number of pixels, as video encoders require."""
    return 2 * math.ceil(inches * _DPI / 2) / _DPI
