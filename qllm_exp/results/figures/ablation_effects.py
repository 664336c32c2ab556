"""What the values of a setting do: the differences of an ablation table as a figure."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qllm_exp.errors import UserError
from qllm_exp.results.figures.style import notes_below, panels, save, tidy
from qllm_exp.results.statistics.sample_units import few
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import Sheet

_DIFFERENCE = "difference to default"  # column of an ablation table
_BARE = ("mixer", "algorithm")  # labels whose values say what they are


def effects(table: Sheet, path: Path | None = None) -> Figure:
    """A point with its interval for each value of an ablation's axes that is not the default; a panel per task.

    Args:
        table: from `table.ablation`. path: where to write it; None: nowhere.

    Raises:
        UserError: for a table without a difference.
    """
    tasks: dict[str, list[tuple[str, Cell]]] = {}
    of_task = [at for at, name in enumerate(table.labels) if name in ("env", "task")]
    named = [at for at in range(len(table.labels)) if at not in of_task and len({row[at] for row, _ in table.rows}) > 1]
    for labels, cells in table.rows:
        cell = dict(zip(table.columns, cells, strict=True)).get(_DIFFERENCE)
        if isinstance(cell, Cell):
            words = [
                f"{labels[at]}" if table.labels[at] in _BARE else f"{table.labels[at]}={labels[at]}" for at in named
            ]
            name = f"{', '.join(words)} (n={cell.estimate.runs})"
            tasks.setdefault("/".join(str(labels[at]) for at in of_task), []).append((name, cell))
    if not tasks:
        raise UserError(
            "This table has no difference to draw: the effects are those of `ablation`, for an axis whose default was run "
            "on a task together with another value."
        )
    longest = max(len(name) for rows in tasks.values() for name, _ in rows)
    height = 1.4 + 0.35 * max(map(len, tasks.values()))
    figure, axes = panels(len(tasks), width=3.2 + 0.08 * longest, height=height)
    for axis, (task, rows) in zip(axes, tasks.items(), strict=True):
        for at, (_, cell) in enumerate(rows):
            one = cell.estimate
            reach = [[one.value - one.low], [one.high - one.value]] if np.isfinite(one.low) else None
            axis.errorbar(one.value, at, xerr=reach, fmt="o", color="black", capsize=4, markersize=5, linewidth=1.2)
        axis.axvline(0, color="black", linewidth=0.8, linestyle="--")
        axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_title(task, fontsize=10)
        axis.set_xlabel(f"{table.columns[0]}: difference to the default")
        tidy(axis)
        axis.grid(visible=False, axis="y")
    defaults = [note for note in table.notes if note.startswith(("Default: ", "Difference: "))]
    notes_below(figure, [*defaults, *few(cell.estimate.runs for rows in tasks.values() for _, cell in rows)])
    save(figure, path)
    return figure
