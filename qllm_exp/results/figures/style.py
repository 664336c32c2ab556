"""How methods look in every figure, and how a figure is saved."""

import textwrap
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from qllm_exp.errors import UserError
from qllm_exp.results.records.keys import family, sort_key
from qllm_exp.results.statistics.aggregate import Array

PICTURES = (".png", ".pdf", ".svg")

_INSIDE = 6  # methods in a legend within the axes, at most

_DOTTED = (0, (6, 1.5, 1, 1.5, 1, 1.5))  # a dash and two dots
_LINES = ("-", "--", "-.", ":", _DOTTED, (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "d", "p", "h", "8")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "ooo")
_LIGHTNESS = (20, 33, 46, 59, 72)  # L* of the shades of a colour; lighter ones are lost on white


class Style(NamedTuple):
    """Colour, and what tells methods apart without colour: line, marker and hatch."""

    colour: str
    line: Any  # as matplotlib takes it
    marker: str
    hatch: str


# Mixers: Okabe & Ito (2008), without their yellow, which is too light for a line, and with a wine red. Algorithms: eight
# that are as far as can be from each other, also to colour-blind eyes (tests/unit/test_looks.py).
_FIXED = {
    "tfcaf": Style("#D55E00", "-", "o", ""),
    "qmix": Style("#0072B2", "--", "s", "///"),
    "vdn": Style("#009E73", "-.", "^", "..."),
    "none": Style("#CC79A7", ":", "D", "xxx"),
    "qatten": Style("#56B4E9", _DOTTED, "v", "\\\\\\"),
    "qplex": Style("#E69F00", "--", "P", "---"),
    "qtran": Style("#000000", "-.", "X", "++"),
    "wqmix": Style("#882255", "-", "*", "ooo"),
    "riit": Style("#1C008C", "--", "<", "///"),
    "maser": Style("#8C1C38", "-.", ">", "..."),
    "iql": Style("#FC8CC4", ":", "d", "xxx"),
    "coma": Style("#C41C00", _DOTTED, "p", "\\\\\\"),
    "maddpg": Style("#0054FC", "-", "h", "---"),
    "mappo": Style("#38C470", "--", "8", "++"),
    "ippo": Style("#C48CFC", "-.", "D", "ooo"),
    "lica": Style("#540054", ":", "*", ""),
}


def looks(methods: Sequence[str]) -> dict[str, Style]:
    """The look of each method, which is made from its name, so that it is the same in all figures.

    The mixers and algorithms of `keys.ORDER` have fixed looks; 'riit', 'riit+riit' and 'riit+none' are alike. Any other mixer
    or algorithm has the colour, line, marker and hatch that its name hashes to, none of them a fixed look. A variant
    ('qmix hidden=32', 'riit+tfcaf') has the hue of what it is a variant of, in a shade and with a line, marker and hatch
    that its whole name hashes to; beside an algorithm a known mixer gives the marker.

    Where two methods of a figure would have the same colour and line, the later in order (`keys.sort_key`) takes the next that
    are free: only then, and in these alone, does a look depend on what is beside it. A variant's hue and marker never do, until
    all 24 shades and lines of a hue are used up.
    """
    ordered = sorted(set(methods), key=sort_key)
    families: dict[str, Style] = {}
    taken = set(_FIXED.values())
    for name in dict.fromkeys(map(family, ordered)):
        families[name] = _FIXED.get(name) or _free(_strangers(name), taken)
        taken.add(families[name])
    found: dict[str, Style] = {}
    for name in ordered:
        look = families[family(name)]
        if not _is_plain(name) or look in found.values():  # a variant, or a second of those that are alike
            look = _free(_variants(name, look), taken)
            taken.add(look)
        found[name] = look
    return found


def _is_plain(name: str) -> bool:
    return name in (family(name), f"{family(name)}+none", f"{family(name)}+{family(name)}")


def _free(candidates: Iterator[Style], taken: set[Style]) -> Style:
    """The first whose colour and line are not taken; else the first that is not taken as a whole; else the first."""
    every, pairs = list(candidates), {one[:2] for one in taken}
    new = (one for one in every if one[:2] not in pairs)
    return next(new, None) or next((one for one in every if one not in taken), every[0])


def _strangers(name: str) -> Iterator[Style]:
    """Looks for a mixer or algorithm that is not known, the one that its name hashes to first."""
    colours = [one.colour for one in _FIXED.values()]
    return _hashed(name, colours)


def _variants(name: str, of: Style) -> Iterator[Style]:
    """Looks for a variant: shades of a hue, the one that its name hashes to first."""
    mixer = _FIXED.get(name.partition("+")[2].split(" ")[0])
    return _hashed(name, _shades(of.colour), None if mixer is None else mixer.marker)


def _hashed(name: str, colours: Sequence[str], marker: str | None = None) -> Iterator[Style]:
    """Every colour and line, then the same with the next marker."""
    number = zlib.crc32(name.encode())
    pairs = [(colour, line) for line in _LINES for colour in colours]
    hatch = _HATCHES[(number >> 16) % len(_HATCHES)]
    first = (number >> 8) % len(_MARKERS) if marker is None else _MARKERS.index(marker)
    for lap in range(len(_MARKERS)):
        for step in range(len(pairs)):
            # 5 has no divisor in common with the numbers of pairs, so that all are met, each unlike the one before.
            colour, line = pairs[(number + 5 * step) % len(pairs)]
            yield Style(colour, line, _MARKERS[(first + lap) % len(_MARKERS)], hatch)


def _shades(colour: str) -> list[str]:
    """The hue at each `_LIGHTNESS` but the one next to its own, mixed with black or white."""
    own = np.array(to_rgb(colour))
    kept = sorted(_LIGHTNESS, key=lambda one: abs(one - lightness(own)))[1:]
    return [to_hex(tuple(_at(own, one))) for one in sorted(kept)]


def _at(own: Array, wanted: float) -> Array:
    """A colour with a given lightness, to 1 of 100."""
    shares = np.linspace(0, 1, 101)[:, None]
    mixed = own * (1 - shares) + (1.0 if wanted > lightness(own) else 0.0) * shares
    nearest: Array = mixed[np.abs(lightness(mixed) - wanted).argmin()]
    return nearest


def lightness(rgb: Array) -> Array:
    """L* of sRGB colours, [..., 3] in 0 to 1 to [...] in 0 to 100: what is left of them in grey (CIE 1976)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    grey: Array = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    return grey


def panels(
    count: int, width: float = 4.4, height: float = 3.3, entries: Sequence[Sequence[str]] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure with that many axes, at most three side by side, and four as a square.

    Args:
        width, height: of one, in inches.
        entries: of the legend of each, for which room is added where it stands outside (`legends`).
    """
    columns = 2 if count == 4 else min(3, count)
    room, most = 0.0, max(entries, key=len, default=())
    if len(most) > _INSIDE:
        room = (0.7 + 0.075 * max(map(len, most))) * (1 if _alike(entries) else columns)
        height = max(height, 0.6 + 0.17 * len(most))
    lines = -(-count // columns)
    size = (max(width * columns + room, 4.4), height * lines)
    figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which keeps figures and may want a display
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def tidy(axis: Axes) -> None:
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """Within the axes for a few methods; for many to their right, one for all axes where they show the same."""
    style: dict[str, Any] = {"fontsize": 7, "framealpha": 0.6, "handlelength": 3}
    found = [axis.get_legend_handles_labels() for axis in axes]
    many = max(len(labels) for _, labels in found) > _INSIDE
    if many and _alike([labels for _, labels in found]):
        figure.legend(*found[0], loc="outside right upper", **style)
        return
    for axis, (_, labels) in zip(axes, found, strict=True):
        outside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(labels) > _INSIDE else {}
        axis.legend(**style, **outside)


def _alike(entries: Sequence[Sequence[str]]) -> bool:
    return all(list(one) == list(entries[0]) for one in entries)


def notes_below(figure: Figure, notes: Sequence[str]) -> None:
    """Small print under a figure, broken to its width."""
    width = int(figure.get_figwidth() * 18)  # characters to the inch
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
