"""The comparison and ablation tables, from collected runs to sheets."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from qllm_exp.errors import UserError
from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.records.reader import Record
from qllm_exp.results.tables.ablation_defaults import default, notes
from qllm_exp.results.tables.pivot import METRIC_WORDS, METRICS, STATISTICS, Cell, Key, Pivot, gap, pivot
from qllm_exp.results.tables.sheet import Sheet, notes_on, notes_on_missing
from qllm_exp.utils.text import count

ROWS, COLUMNS = ("env", "task"), (keys.METHOD,)
STAT_WORDS = {"mean": "mean", "median": "median", "iqm": "IQM"}
DIFFERENCE_WORDS = {
    "mean": "of means, with Welch's 95 % interval (a bootstrap interval where no run differs from another)",
    "median": "of medians, with a 95 % bootstrap interval",
    "iqm": "of IQMs, with a 95 % bootstrap interval",
}


def comparison(
    collection: Collection,
    rows: Sequence[str] = ROWS,
    columns: Sequence[str] = COLUMNS,
    metric: str = "final",
    stat: str = "mean",
) -> tuple[Sheet, Pivot]:
    """Rows and columns by the values of any keys; each cell a statistic over seeds with its interval (`cells` has the rules).

    Raises:
        UserError: without a finished run; for an unknown key, metric or statistic; where a cell would mix methods.
    """
    records = finished(collection)
    names = keys.resolve([*rows, *columns], records)
    row_keys, column_keys = names[: len(rows)], names[len(rows) :]
    found = pivot(records, row_keys, column_keys, metric, stat)
    if not found.cells:
        raise UserError(
            "No task is common to what would be compared. Make task a row (--rows env,task), or run what is missing."
        )
    sheet = Sheet(
        title=_title(metric, stat, found),
        heading=" ".join(map(keys.short, column_keys)),
        labels=[keys.short(key) for key in row_keys],
        columns=[keys.label(column_keys, column) or "all" for column in found.columns],
        rows=[(row, [found.cells.get((row, column)) for column in found.columns]) for row in found.rows],
        metric=metric,
        stat=stat,
    )
    return _with_notes(sheet, found, collection), found


def ablation(
    collection: Collection, axes: Sequence[str], metric: str = "final", stat: str = "mean"
) -> tuple[Sheet, Pivot]:
    """A row per combination of the axes' values that was run; beside its figure the difference to that of the default values.

    Each task, and mixer and algorithm where these differ, has a default of its own (`defaults`), which is 'default' in its row.
    Runs that have not all the axes (a mixer that is trained has no tfcaf.rounds) are left out, and a footnote says which.

    Raises:
        UserError: as `comparison`; for an axis of which the runs have one value only.
    """
    records = finished(collection)
    axis_keys = keys.resolve(axes, records)
    having = [one for one in records if all(keys.has(one, axis) for axis in axis_keys)]
    for axis in axis_keys:
        _check_varies(axis, having, records)
    apart = [key for key in ("mixer.name", "algorithm.name") if key in set(keys.differing(having)) - set(axis_keys)]
    row_keys = [*(key for key in keys.TASK_KEYS if key not in axis_keys), *apart]
    found = pivot(having, [*row_keys, *axis_keys], (), metric, stat)
    alike: dict[Key, list[Record]] = defaultdict(list)
    for row in found.rows:
        alike[row[: len(row_keys)]] += found.cells[row, ()].runs
    usual = {of: default(axis_keys, runs) for of, runs in alike.items()}
    rows: list[tuple[Sequence[Any], Sequence[Cell | str | None]]] = []
    for row in found.rows:
        of = row[: len(row_keys)]
        rows.append((row, [found.cells[row, ()], _difference(found, row, (*of, *usual[of].values), stat)]))
    sheet = Sheet(
        title=_title(metric, stat, found),
        heading="figure",
        labels=[keys.short(key) for key in (*row_keys, *axis_keys)],
        columns=["return" if found.normalised is None else "score", "difference to default"],
        rows=rows,
        metric=metric,
        stat=stat,
        notes=[
            *notes(axis_keys, usual),
            f"Difference: {DIFFERENCE_WORDS[stat]}.",
            *_lacking(records, having, axis_keys),
        ],
    )
    return _with_notes(sheet, found, collection), found


def finished(collection: Collection) -> list[Record]:
    """The finished runs; UserError where there is none."""
    if not collection.finished:
        raise UserError(
            f"No run is finished: {collection.counts()}. python -m launch.status FOLDER says how they stand."
        )
    return collection.finished


def _title(metric: str, stat: str, found: Pivot) -> str:
    scale = "" if found.normalised is None else ", normalised"
    return f"{METRIC_WORDS[metric]}{scale}, {STAT_WORDS[stat]} [95 % bootstrap interval over seeds] (n seeds)"


def _with_notes(sheet: Sheet, found: Pivot, collection: Collection) -> Sheet:
    said = [*notes_on(sheet), *sheet.notes]
    if found.normalised is not None:
        said += found.normalised.notes
        said += [
            "Cells with several tasks: normalised per task; cells that compare are over the tasks that all of them have."
        ]
    gone = Counter((one.method, one.task) for one in found.left_out)
    said += [f"Left out: {method} on {task} ({count(times, 'run')})." for (method, task), times in sorted(gone.items())]
    return Sheet(**{**vars(sheet), "notes": [*said, *notes_on_missing(collection)]})


def _check_varies(axis: str, having: Sequence[Record], records: Sequence[Record]) -> None:
    values = {repr(keys.value(one, axis)) for one in having}
    if len(values) > 1:
        return
    vary = keys.differing(records)
    said = f"has one value only, {next(iter(values))}," if values else "is in no run together with the other axes"
    raise UserError(
        f"--axis {axis} {said} in these runs, so there is nothing to compare. "
        + (f"What varies: {', '.join(vary[:12])}." if vary else "Nothing varies but the seed.")
    )


def _difference(found: Pivot, row: Key, usual: Key, stat: str) -> Cell | str | None:
    cell, reference = found.cells[row, ()], found.cells[usual, ()]
    if row == usual:
        return "default"
    if not np.isfinite([cell.estimate.value, reference.estimate.value]).all():
        return None
    return Cell(gap(cell.scores, reference.scores, stat), functions=cell.functions)


def _lacking(records: Sequence[Record], having: Sequence[Record], axes: Sequence[str]) -> list[str]:
    inside = {id(one) for one in having}
    without = Counter(one.method for one in records if id(one) not in inside)
    return [
        f"Left out: {name} ({count(times, 'run')}), without {' or '.join(axes)}."
        for name, times in sorted(without.items())
    ]


__all__ = ["COLUMNS", "METRICS", "ROWS", "STATISTICS", "ablation", "comparison", "finished"]
