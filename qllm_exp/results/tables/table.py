"""The comparison and ablation tables: from collected runs to sheets."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qllm_exp.errors import UserError
from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.records.metric_names import metric_named
from qllm_exp.results.records.reader import Record
from qllm_exp.results.tables.ablation_defaults import default_notes, default_values
from qllm_exp.results.tables.pivot import Cell, Labels, Pivot, difference, notes_on_records, pivot
from qllm_exp.results.tables.sheet import Sheet, notes_on_cells, notes_on_runs
from qllm_exp.utils.text import count

ROWS, COLUMNS = ("env", "task"), (keys.METHOD,)
_STATISTIC_TITLES = {"mean": "mean", "median": "median", "iqm": "IQM"}
_DIFFERENCE_NOTES = {
    "mean": "of means, with Welch's 95 % interval (a bootstrap interval where no two runs differ)",
    "median": "of medians, with a 95 % bootstrap interval",
    "iqm": "of IQMs, with a 95 % bootstrap interval",
}
_MAX_KEYS = 12  # keys listed in an error message


def comparison(
    collection: Collection,
    rows: Sequence[str] = ROWS,
    columns: Sequence[str] = COLUMNS,
    metric: str = "final",
    stat: str = "mean",
) -> tuple[Sheet, Pivot]:
    """Return a table with the values of any keys as rows and columns; each cell is a statistic over seeds with its interval.

    `pivot` describes the rules for cells.

    Args:
        collection: the runs.
        rows: keys as typed, e.g. 'task'.
        columns: keys as typed, e.g. 'method'.
        metric: 'final', 'absolute' or 'win_rate'.
        stat: 'mean', 'median' or 'iqm'.

    Raises:
        UserError: no run has finished; an unknown key, metric or statistic; a task without wins for a win rate; or a cell that
            would pool different methods.
    """
    records = finished_records(collection)
    names = keys.resolve([*rows, *columns], records)
    row_keys, column_keys = names[: len(rows)], names[len(rows) :]
    cells = pivot(records, row_keys, column_keys, metric, stat)
    if not cells.cells:
        raise UserError(
            "The compared cells have no task in common. Make the task a row (--rows env,task), or run the missing tasks."
        )
    sheet = Sheet(
        title=_title(metric, stat, cells),
        heading=" ".join(map(keys.short_name, column_keys)),
        labels=[keys.short_name(key) for key in row_keys],
        columns=[keys.label(column_keys, column) or "all" for column in cells.columns],
        rows=[(row, [cells.cells.get((row, column)) for column in cells.columns]) for row in cells.rows],
        metric=metric,
        stat=stat,
    )
    return _with_notes(sheet, cells, collection), cells


def ablation(
    collection: Collection, axes: Sequence[str], metric: str = "final", stat: str = "mean"
) -> tuple[Sheet, Pivot]:
    """Return a table with one row per combination of values of the axes, and the difference to the default combination.

    Each task, and each mixer and algorithm if these differ, has its own default (`ablation_defaults`), shown as 'default' in its
    row. Runs that lack one of the axes (a trained mixer has no tfcaf.rounds) are left out, and a footnote names them.

    Args:
        collection: the runs.
        axes: keys as typed, e.g. 'tfcaf.rounds'.
        metric: 'final', 'absolute' or 'win_rate'.
        stat: 'mean', 'median' or 'iqm'.

    Raises:
        UserError: as `comparison`, or an axis with only one value.
    """
    records = finished_records(collection)
    axis_keys = keys.resolve(axes, records)
    eligible = [record for record in records if all(keys.has(record, axis) for axis in axis_keys)]
    for axis in axis_keys:
        _check_varies(axis, eligible, records)
    varying = set(keys.differing_keys(eligible)) - set(axis_keys)
    row_keys = [key for key in keys.TASK_KEYS if key not in axis_keys]
    row_keys += [key for key in ("mixer.name", "algorithm.name") if key in varying]
    cells = pivot(eligible, [*row_keys, *axis_keys], (), metric, stat)
    runs_of_base: dict[Labels, list[Record]] = defaultdict(list)  # by the labels of a row without the axes
    for row in cells.rows:
        runs_of_base[row[: len(row_keys)]] += cells.cells[row, ()].runs
    defaults = {base: default_values(axis_keys, runs) for base, runs in runs_of_base.items()}
    rows: list[tuple[Sequence[Any], Sequence[Cell | str | None]]] = []
    for row in cells.rows:
        base = row[: len(row_keys)]
        default_row = (*base, *defaults[base].values)
        rows.append((row, [cells.cells[row, ()], _difference(cells, row, default_row, stat)]))
    sheet = Sheet(
        title=_title(metric, stat, cells),
        heading="figure",
        labels=[keys.short_name(key) for key in (*row_keys, *axis_keys)],
        columns=["return" if cells.normalisation is None else "score", "difference to default"],
        rows=rows,
        metric=metric,
        stat=stat,
        notes=[
            *default_notes(axis_keys, defaults),
            f"Difference: {_DIFFERENCE_NOTES[stat]}.",
            *_ineligible_notes(records, eligible, axis_keys),
        ],
    )
    return _with_notes(sheet, cells, collection), cells


def finished_records(collection: Collection) -> list[Record]:
    """Return the finished runs.

    Raises:
        UserError: no run has finished.
    """
    if not collection.finished:
        raise UserError(f"No run has finished ({collection.counts()}). For details: python -m qllm_exp status FOLDER.")
    return collection.finished


def _title(metric: str, stat: str, cells: Pivot) -> str:
    scale = "" if cells.normalisation is None or metric_named(metric).is_share else ", normalised"
    return (
        f"{metric_named(metric).title}{scale}, {_STATISTIC_TITLES[stat]} [95 % bootstrap interval over seeds] (n seeds)"
    )


def _with_notes(sheet: Sheet, cells: Pivot, collection: Collection) -> Sheet:
    shown = [run for cell in cells.cells.values() for run in cell.runs]
    notes = [*notes_on_cells(sheet), *notes_on_records(shown, sheet.metric), *sheet.notes]
    if cells.normalisation is not None:
        notes += cells.normalisation.notes
        scale = "" if metric_named(sheet.metric).is_share else "values are normalised per task; "
        notes.append(f"Cells with several tasks: {scale}compared cells use only the tasks that all of them have.")
    left_out = Counter((record.method, record.task) for record in cells.left_out)
    for (method, task), number in sorted(left_out.items()):
        notes.append(f"Left out: {method} on {task} ({count(number, 'run')}).")
    return replace(sheet, notes=[*notes, *notes_on_runs(collection)])


def _check_varies(axis: str, eligible: Sequence[Record], records: Sequence[Record]) -> None:
    """Raise UserError if an axis has only one value."""
    values = {repr(keys.value(record, axis)) for record in eligible}
    if len(values) > 1:
        return
    if values:
        problem = (
            f"--axis {axis} has only one value, {next(iter(values))}, in these runs, so there is nothing to compare."
        )
    else:
        problem = f"No run has --axis {axis} together with the other axes, so there is nothing to compare."
    varying = keys.differing_keys(records)
    if varying:
        raise UserError(f"{problem} Settings that vary: {', '.join(varying[:_MAX_KEYS])}.")
    raise UserError(f"{problem} Nothing varies except the seed.")


def _difference(cells: Pivot, row: Labels, default_row: Labels, stat: str) -> Cell | str | None:
    if row == default_row:
        return "default"
    cell, reference = cells.cells[row, ()], cells.cells[default_row, ()]
    if not np.isfinite([cell.estimate.value, reference.estimate.value]).all():
        return None
    return Cell(difference(cell.scores, reference.scores, stat), functions=cell.functions)


def _ineligible_notes(records: Sequence[Record], eligible: Sequence[Record], axes: Sequence[str]) -> list[str]:
    """Return the footnotes on runs that lack one of the axes."""
    eligible_ids = {id(record) for record in eligible}
    counts = Counter(record.method for record in records if id(record) not in eligible_ids)
    return [
        f"Left out: {method} ({count(number, 'run')}), which has no {' or '.join(axes)}."
        for method, number in sorted(counts.items())
    ]
