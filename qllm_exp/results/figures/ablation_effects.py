"""Effects of the values of a setting: the differences of an ablation table, as a figure."""

from pathlib import Path

from matplotlib.figure import Figure

from qllm_exp.errors import UserError
from qllm_exp.results.figures.style import finish, label_rows, panels, plot_estimate
from qllm_exp.results.statistics.sample_units import small_n_notes
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import Sheet

_DIFFERENCE = "difference to default"  # column of an ablation table
_SELF_EXPLANATORY = ("mixer", "algorithm")  # labels that are left out before their value


def effects(table: Sheet, path: Path | None = None) -> Figure:
    """Plot a point with its interval for each non-default value of an ablation's axes, a panel per task.

    Args:
        table: from `table.ablation`.
        path: file to write; None: no file.

    Returns:
        The figure.

    Raises:
        UserError: the table has no difference to a default.
    """
    tasks: dict[str, list[tuple[str, Cell]]] = {}
    task_columns = [column for column, name in enumerate(table.labels) if name in ("env", "task")]
    varied_columns = [
        column
        for column in range(len(table.labels))
        if column not in task_columns and len({labels[column] for labels, _ in table.rows}) > 1
    ]
    for labels, cells in table.rows:
        cell = dict(zip(table.columns, cells, strict=True)).get(_DIFFERENCE)
        if isinstance(cell, Cell):
            values = [_setting_text(table.labels[column], labels[column]) for column in varied_columns]
            name = f"{', '.join(values)} (n={cell.estimate.runs})"
            task = "/".join(str(labels[column]) for column in task_columns)
            tasks.setdefault(task, []).append((name, cell))
    if not tasks:
        raise UserError(
            "This table has no difference to draw: the effects are those of `ablation`, for an axis whose default was run "
            "on a task together with another value."
        )
    longest = max(len(name) for rows in tasks.values() for name, _ in rows)
    height = 1.4 + 0.35 * max(map(len, tasks.values()))
    figure, axes = panels(len(tasks), width=3.2 + 0.08 * longest, height=height)
    for axis, (task, rows) in zip(axes, tasks.items(), strict=True):
        for row, (_, cell) in enumerate(rows):
            plot_estimate(axis, row, cell.estimate)
        label_rows(axis, [name for name, _ in rows], neutral=0.0)
        axis.set_title(task, fontsize=10)
        axis.set_xlabel(f"{table.columns[0]}: difference to the default")
    defaults = [note for note in table.notes if note.startswith(("Default: ", "Difference: "))]
    return finish(
        figure, [*defaults, *small_n_notes(cell.estimate.runs for rows in tasks.values() for _, cell in rows)], path
    )


def _setting_text(name: str, value: object) -> str:
    """'train.gamma=0.9', or only the value where it explains itself: 'qmix'."""
    return f"{value}" if name in _SELF_EXPLANATORY else f"{name}={value}"
