"""How methods look in every figure, and how a figure is saved."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qllm_exp.errors import UserError
from qllm_exp.results.keys import ORDER, sort_key
from qllm_exp.results.statistics import ENOUGH

PICTURES = (".png", ".pdf", ".svg")

# Okabe & Ito (2008): distinguishable with colour-blindness. Yellow, too light for a line on white, is not used.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++")
_INSIDE = 6  # methods in a legend within the axes, at most


class Look(NamedTuple):
    """Colour, and what tells methods apart without colour: line, marker and hatch."""

    colour: str
    line: str
    marker: str
    hatch: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """The look of each method; that of tfcaf, qmix, vdn and none is theirs in all figures, the others' follow by name."""
    others = sorted((one for one in methods if one not in ORDER), key=sort_key)
    return {one: _look([*ORDER, *others].index(one)) for one in methods}


def _look(at: int) -> Look:
    lap, colour = divmod(at, len(_COLOURS))
    turn = colour + lap  # the same colour comes back with another line, marker and hatch
    return Look(
        _COLOURS[colour], _LINES[turn % len(_LINES)], _MARKERS[turn % len(_MARKERS)], _HATCHES[turn % len(_HATCHES)]
    )


def panels(
    count: int, width: float = 4.4, height: float = 3.3, beside: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure with that many axes, at most three side by side.

    Args:
        width, height: of one, in inches. beside: entries of a legend; where they are many, it stands to the right (`legend`).
    """
    if len(beside) > _INSIDE:
        width += 0.7 + 0.075 * max(map(len, beside))
        height = max(height, 0.6 + 0.17 * len(beside))
    columns = min(3, count)
    lines = -(-count // columns)
    size = (max(width * columns, 4.4), height * lines)
    figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which keeps figures and may want a display
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def tidy(axis: Axes) -> None:
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legend(axis: Axes) -> None:
    """Within the axes for a few methods, to their right for many."""
    _, labels = axis.get_legend_handles_labels()
    inside = len(labels) <= _INSIDE
    where: dict[str, Any] = {} if inside else {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    axis.legend(fontsize=7, framealpha=0.6, handlelength=3, **where)


def few(runs: Iterable[int]) -> list[str]:
    """A note where a method has few runs."""
    return [f"Fewer than {ENOUGH} seeds, where n says so: the interval is too narrow to conclude from."] * (
        min(runs) < ENOUGH
    )


def notes_below(figure: Figure, notes: Sequence[str]) -> None:
    """Small print under a figure, broken to its width."""
    width = int(figure.get_figwidth() * 20)  # characters to the inch
    lines = [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="   ")]
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left", color="#333333")


def check_picture(path: Path) -> None:
    """UserError for a file that is no picture by its ending."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path}: a figure is written as {', '.join(PICTURES)}. Give e.g. -o {path.stem}.pdf.")


def save(figure: Figure, path: Path | None) -> None:
    """Write it, unless no path is given; the ending says as what. UserError where it cannot be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another file with -o.") from None
