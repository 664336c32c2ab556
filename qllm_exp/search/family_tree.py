"""The family tree of a search as an SVG element: a column per generation, a box per function, a line from each parent.

It takes its colours from the page, so it is read in light, in dark and in print.
"""

import math
from collections.abc import Mapping, Sequence

from qllm_exp.results.report.parts import Html, concat, tag
from qllm_exp.search.archive import Member
from qllm_exp.utils.text import count

_WIDTH, _HEIGHT = 158, 46  # of a box, pixels
_COLUMN_GAP, _ROW_GAP = 76, 16  # between boxes; lines run in the column gap
_TOP, _MARGIN = 34, 3
_INDENT = 16  # of a function with trained constants, below its parent


def family_tree(
    members: Sequence[Member],
    best: Member | None,
    plain_sum: Mapping[int, float],
    steps: Sequence[int],
    refused: Mapping[int, int],
) -> Html:
    """Return the tree.

    Args:
        members: the functions.
        best: the best of them; None if there is none yet.
        plain_sum: return of the plain sum (VDN) by stage; {} if it was not trained.
        steps: environment steps of each stage.
        refused: number of refused candidates by generation.
    """
    columns = _columns(members, refused)
    cells = {member.key: (column, row) for column, own in enumerate(columns.values()) for row, member in enumerate(own)}
    lineage = _lineage(members, best)
    edges = sorted(_edges(members, lineage), key=lambda edge: edge[2].endswith("lineage"))  # the lineage is drawn last
    lines = [
        tag("path", d=_path(cells[parent], cells[child], number), class_=class_)
        for number, (parent, child, class_) in enumerate(edges)
    ]
    rows = [len(own) for own in columns.values()]
    heads = [
        tag("text", f"Generation {generation}", x=_x(column), y=16, class_="tree-head")
        for column, generation in enumerate(columns)
    ]
    boxes = [_box(member, cells[member.key], plain_sum, len(steps), best, lineage) for member in members]
    notes = [
        tag("text", f"{refused[generation]} refused", x=_x(column), y=_y(rows[column]) + 8, class_="tree-note")
        for column, generation in enumerate(columns)
        if generation in refused
    ]
    width = _x(len(columns)) - _COLUMN_GAP + _MARGIN
    height = _y(max(rows)) + (18 if notes else 0)
    label = f"Family tree of {count(len(members), 'function')}; the table below has the same as text"
    drawing = concat([*heads, *lines, *boxes, *notes])
    return tag(
        "svg",
        drawing,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_="tree",
    )


def _x(column: int) -> int:
    return _MARGIN + column * (_WIDTH + _COLUMN_GAP)


def _y(row: int) -> int:
    return _TOP + row * (_HEIGHT + _ROW_GAP)


def _columns(members: Sequence[Member], refused: Mapping[int, int]) -> dict[int, list[Member]]:
    """Return the functions of each generation by island, those with trained constants below their parent."""
    columns: dict[int, list[Member]] = {}
    for generation in sorted({member.generation for member in members} | set(refused)):
        own = [member for member in members if member.generation == generation]
        order = [member.key for member in sorted(own, key=lambda member: (member.tuned, member.island))]
        columns[generation] = sorted(
            own, key=lambda member: (order.index(member.parents[0] if member.tuned else member.key), member.tuned)
        )
    return columns


def _lineage(members: Sequence[Member], best: Member | None) -> set[str]:
    """Return the keys of the best function and of those that it was improved from, one after the other."""
    by_key = {member.key: member for member in members}
    keys: set[str] = set()
    member = best
    while member is not None and member.key not in keys:
        keys.add(member.key)
        member = by_key.get(member.parents[0]) if member.parents else None
    return keys


def _edges(members: Sequence[Member], lineage: set[str]) -> list[tuple[str, str, str]]:
    """Return parent, child and CSS class of each line."""
    known = {member.key for member in members}
    edges = []
    for member in members:
        for number, parent in enumerate(member.parents):
            if parent in known:
                kind = "tree-shown" if number else "tree-parent"
                in_lineage = not number and {parent, member.key} <= lineage
                edges.append((parent, member.key, f"{kind} tree-lineage" if in_lineage else kind))
    return edges


def _path(start: tuple[int, int], end: tuple[int, int], number: int) -> str:
    """Return the path from a box to another; past columns between them in a gap of rows.

    Args:
        start: column and row of the first box.
        end: column and row of the second box.
        number: number of the line; neighbours in a gap are drawn beside each other.
    """
    x, y = _x(start[0]) + _WIDTH, _y(start[1]) + _HEIGHT // 2
    to_x, to_y = _x(end[0]), _y(end[1]) + _HEIGHT // 2
    bend = _COLUMN_GAP // 2
    if start[0] == end[0]:  # to the function with trained constants below
        return f"M{_x(start[0]) + _INDENT // 2} {_y(start[1]) + _HEIGHT} V{to_y} H{to_x + _INDENT}"
    if end[0] - start[0] < 2:
        return f"M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"
    gap = _y(max(start[1], end[1])) - _ROW_GAP // 2 + number % 5 * 2 - 4
    left, right = x + _COLUMN_GAP, to_x - _COLUMN_GAP
    into_gap = f"M{x} {y} C{x + bend} {y} {left - bend} {gap} {left} {gap}"
    return f"{into_gap} L{right} {gap} C{right + bend} {gap} {to_x - bend} {to_y} {to_x} {to_y}"


def _box(
    member: Member,
    cell: tuple[int, int],
    plain_sum: Mapping[int, float],
    stages: int,
    best: Member | None,
    lineage: set[str],
) -> Html:
    """Return the box of a function, which links to its row of the table.

    Args:
        member: the function.
        cell: its column and row.
        plain_sum: as for `family_tree`.
        stages: number of stages.
        best: the best function.
        lineage: keys of the best function and of its ancestors.
    """
    indent = _INDENT if member.tuned else 0
    x, y, width = _x(cell[0]) + indent, _y(cell[1]), _WIDTH - indent
    stage, value = member.score
    baseline = plain_sum.get(stage)
    state = "open"  # not trained yet, or nothing to compare with
    if value == -math.inf:
        text, state = ("diverged", "worse") if stage >= 0 else ("not trained yet", "open")
    else:
        text = f"{value:.3f}"
        if baseline is not None and baseline > -math.inf:
            text += f" ({value - baseline:+.3f})"
            state = "better" if value > baseline else "worse"
    classes = f"tree-box {state}" + (
        " tree-best" if member is best else " tree-ancestor" if member.key in lineage else ""
    )
    parts = [
        tag("title", f"{member.label}: {text}"),
        tag("rect", x=x, y=y, width=width, height=_HEIGHT, rx=6),
        tag("rect", x=x, y=y, width=5, height=_HEIGHT, rx=2, class_="tree-stripe"),
        tag("text", f"{member.label}{' · best' if member is best else ''}", x=x + 14, y=y + 19, class_="tree-label"),
        tag("text", text, x=x + 14, y=y + 36),
    ]
    parts += [
        tag(
            "circle",
            cx=x + width - 12 - 10 * (stages - 1 - number),
            cy=y + 15,
            r=3,
            class_="" if number <= stage else "tree-missed",
        )
        for number in range(stages)
    ]
    return tag("a", *parts, href=f"#function-{member.key[:12]}", class_=classes)
