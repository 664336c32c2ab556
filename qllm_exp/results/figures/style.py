"""The style of each method, which is the same in every figure, and the layout that figures share."""

import textwrap
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qllm_exp.errors import UserError
from qllm_exp.results.records.keys import family, sort_key
from qllm_exp.results.statistics.aggregate import Estimate

_T = TypeVar("_T")

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")

_MAX_LEGEND_INSIDE = 4  # methods in a legend within the axes, at most: a longer one covers curves

_DASH_DOT_DOT = (0, (6, 1.5, 1, 1.5, 1, 1.5))
_LINES = ("-", "--", "-.", ":", _DASH_DOT_DOT, (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "d", "p", "h", "8")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "ooo")


class Style(NamedTuple):
    """How a method is drawn. Line, marker and hatch tell methods apart without colour.

    Attributes:
        colour: '#RRGGBB'.
        line: line style, as matplotlib takes it.
        marker: of a line.
        hatch: of a bar.
    """

    colour: str
    line: Any
    marker: str
    hatch: str


# Mixers: Okabe & Ito (2008), with a wine red in place of their yellow, which is too light for a line. Algorithms:
# colours that are as far apart as possible, also for colour-blind readers (tests/unit/results/test_figure_style.py).
_FIXED = {
    "tfcaf": Style("#D55E00", "-", "o", ""),
    "qmix": Style("#0072B2", "--", "s", "///"),
    "vdn": Style("#009E73", "-.", "^", "..."),
    "none": Style("#CC79A7", ":", "D", "xxx"),
    "qatten": Style("#56B4E9", _DASH_DOT_DOT, "v", "\\\\\\"),
    "qplex": Style("#E69F00", "--", "P", "---"),
    "qtran": Style("#000000", "-.", "X", "++"),
    "wqmix": Style("#882255", "-", "*", "ooo"),
    "qfix": Style("#6200C4", ":", "p", "|||"),
    "riit": Style("#1C008C", "--", "<", "///"),
    "maser": Style("#8C1C38", "-.", ">", "..."),
    "iql": Style("#FC8CC4", ":", "d", "xxx"),
    "pqn": Style("#9C4E89", "-", "^", "|||"),
    "coma": Style("#C41C00", _DASH_DOT_DOT, "p", "\\\\\\"),
    "maddpg": Style("#0054FC", "-", "h", "---"),
    "mappo": Style("#38C470", "--", "8", "++"),
    "ippo": Style("#C48CFC", "-.", "D", "ooo"),
    "lica": Style("#540054", ":", "*", ""),
}
# Colours of variants: each colour above mixed with black or white, to four levels of lightness that differ from its own.
_SHADES = {
    "#D55E00": ("#512400", "#803800", "#b34f00", "#e7a26b"),
    "#0072B2": ("#003350", "#005280", "#4297c6", "#80b8d8"),
    "#009E73": ("#003728", "#005840", "#007d5b", "#5ec2a7"),
    "#CC79A7": ("#432837", "#6c4059", "#975a7c", "#da9fc0"),
    "#56B4E9": ("#183241", "#28536b", "#377395", "#4795c1"),
    "#E69F00": ("#402d00", "#674800", "#916400", "#bd8200"),
    "#000000": ("#4c4c4c", "#6e6e6e", "#8f8f8f", "#b0b0b0"),
    "#882255": ("#581637", "#a2537a", "#b97d9b", "#cea4b9"),
    "#6200C4": ("#3a0075", "#7e2ecf", "#a66edd", "#c9a7eb"),
    "#1C008C": ("#503ba6", "#7261b8", "#9285c8", "#b4abd9"),
    "#8C1C38": ("#5e1326", "#a85268", "#bc7b8c", "#d1a4af"),
    "#FC8CC4": ("#472737", "#6f3e56", "#9c577a", "#cc719f"),
    "#9C4E89": ("#3d1e35", "#7b3e6c", "#ad6d9e", "#cfaac6"),
    "#C41C00": ("#640e00", "#9b1600", "#da705e", "#e6a094"),
    "#0054FC": ("#00297b", "#0041c2", "#528bfd", "#8ab0fe"),
    "#38C470": ("#10371f", "#195832", "#237b47", "#2ea15c"),
    "#C48CFC": ("#392949", "#5c4276", "#815ca6", "#a978d9"),
    "#540054": ("#763376", "#905990", "#aa80aa", "#c5a8c5"),
}


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return the style of each method, which depends on its name and is therefore the same in all figures.

    The mixers and algorithms of `keys.ORDER` have fixed styles; 'riit', 'riit+riit' and 'riit+none' share one. All other
    methods take the style that a hash of their name selects (`_candidates`). Where that style is taken in this figure, or
    is a fixed one, the method that is later in order (`keys.sort_key`) takes the next free candidate.
    """
    styles: dict[str, Style] = {}
    for name in sorted(set(methods), key=sort_key):
        fixed = _FIXED.get(family(name))
        if fixed is not None and _is_plain(name) and fixed not in styles.values():
            styles[name] = fixed
        else:
            styles[name] = _first_free(_candidates(name), [*_FIXED.values(), *styles.values()])
    return styles


def _is_plain(name: str) -> bool:
    """Whether the method is a mixer or an algorithm with default settings, not a variant of one."""
    return name in (family(name), f"{family(name)}+none", f"{family(name)}+{family(name)}")


def _candidates(name: str) -> list[Style]:
    """All styles that a method may take, in order of preference, starting at the one that a hash of its name selects.

    A variant ('qmix hidden=32', 'riit+tfcaf') has a shade of the colour of its method. Beside an algorithm, a known mixer
    gives the marker. Every colour and line comes with one marker before any of them comes with the next marker.
    """
    number = zlib.crc32(name.encode())
    colours = tuple(_SHADES)
    if not _is_plain(name):
        base = _FIXED.get(family(name)) or _first_free(_candidates(family(name)), list(_FIXED.values()))
        colours = _SHADES[base.colour]
    mixer = _FIXED.get(name.partition("+")[2].split(" ")[0])
    first_marker = number >> 8 if mixer is None else _MARKERS.index(mixer.marker)
    hatch = _HATCHES[(number >> 16) % len(_HATCHES)]
    pairs = _rotate([(colour, line) for line in _LINES for colour in colours], number)
    return [Style(colour, line, marker, hatch) for marker in _rotate(_MARKERS, first_marker) for colour, line in pairs]


def _rotate(items: Sequence[_T], first: int) -> list[_T]:
    """The items in a circle, from the one with number `first` on."""
    start = first % len(items)
    return [*items[start:], *items[:start]]


def _first_free(candidates: Sequence[Style], taken: Collection[Style]) -> Style:
    """The first candidate with a new pair of colour and line; if there is none, the first that is new as a whole."""
    taken_pairs = {(style.colour, style.line) for style in taken}
    for style in candidates:
        if (style.colour, style.line) not in taken_pairs:
            return style
    return next((style for style in candidates if style not in taken), candidates[0])


def panels(
    count: int, width: float = 4.4, height: float = 3.3, entries: Sequence[Sequence[str]] = ()
) -> tuple[Figure, list[Axes]]:
    """Create a figure with `count` axes, at most three side by side, and four as a square.

    Args:
        count: number of axes.
        width: of one of them, in inches.
        height: of one of them, in inches.
        entries: legend labels of each; room is added for a legend outside the axes (`legends`).

    Returns:
        The figure and its axes.
    """
    columns = 2 if count == 4 else min(3, count)
    legend_width = 0.0
    longest = max(entries, key=len, default=())
    if len(longest) > _MAX_LEGEND_INSIDE:
        legend_count = 1 if _all_equal(entries) else columns
        legend_width = (0.7 + 0.075 * max(map(len, longest))) * legend_count
        height = max(height, 0.6 + 0.17 * len(longest))
    rows = -(-count // columns)
    size = (max(width * columns + legend_width, 4.4), height * rows)
    figure = Figure(figsize=size, layout="constrained")  # pyplot would keep the figure open, and may need a display
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def tidy(axis: Axes) -> None:
    """Draw a faint grid behind the data and remove the upper and right spines."""
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add legends: inside the axes for few methods, to their right for many, and one for all axes with equal labels."""
    style: dict[str, Any] = {"fontsize": 7, "framealpha": 0.6, "handlelength": 3}
    contents = [axis.get_legend_handles_labels() for axis in axes]
    labels_per_axis = [labels for _, labels in contents]
    if max(map(len, labels_per_axis)) > _MAX_LEGEND_INSIDE and _all_equal(labels_per_axis):
        figure.legend(*contents[0], loc="outside right upper", **style)
        return
    for axis, labels in zip(axes, labels_per_axis, strict=True):
        if len(labels) > _MAX_LEGEND_INSIDE:
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), **style)
        else:
            axis.legend(**style)


def _all_equal(entries: Sequence[Sequence[str]]) -> bool:
    return all(list(labels) == list(entries[0]) for labels in entries)


def plot_estimate(axis: Axes, row: int, estimate: Estimate, marker: str = "o") -> None:
    """Plot an estimate as a point, with its interval if it has one.

    Args:
        axis: to draw on.
        row: vertical position.
        estimate: the estimate.
        marker: of the point.
    """
    errors = None
    if np.isfinite(estimate.low):
        errors = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    axis.errorbar(estimate.value, row, xerr=errors, fmt=marker, color="black", capsize=4, markersize=5, linewidth=1.2)


def label_rows(axis: Axes, labels: Sequence[str], neutral: float) -> None:
    """Label rows 0, 1, ... from top to bottom, mark the neutral value by a dashed line, and `tidy` the axes."""
    axis.axvline(neutral, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    tidy(axis)
    axis.grid(visible=False, axis="y")


NOTE_HEIGHT = 0.12  # inches of a line in small print
FEW_NOTES = 4  # lines of notes that every figure has room for


def finish(figure: Figure, notes: Sequence[str], path: Path | None) -> Figure:
    """Write notes in small print below a figure, wrapped to its width; save the figure, and return it.

    Args:
        figure: the figure.
        notes: the notes.
        path: as in `save`.
    """
    width = int(figure.get_figwidth() * 18)  # characters per inch
    lines = [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="   ")]
    if lines:
        # The layout takes their room from the panels, which are made for a few lines.
        figure.set_figheight(figure.get_figheight() + NOTE_HEIGHT * max(0, len(lines) - FEW_NOTES))
        figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left", color="#333333")
    save(figure, path)
    return figure


def check_figure_path(path: Path) -> None:
    """Raise UserError unless the suffix is one of `FIGURE_SUFFIXES`."""
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise UserError(f"{path}: a figure is written as {', '.join(FIGURE_SUFFIXES)}. Give e.g. -o {path.stem}.pdf.")


def save(figure: Figure, path: Path | None) -> None:
    """Write a figure in the format that the suffix names; do nothing for None.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Text stays text: as TrueType fonts in PDF, as <text> in SVG.
        with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Type another file after -o.") from None
