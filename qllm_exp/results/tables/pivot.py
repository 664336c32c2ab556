"""Cells of a table: which runs they pool, their scores, and which cells are best or not distinguishable from the best.

*Bold.* Among the cells that are compared (those of one row; those of one column if the columns are tasks) the cell with the
highest value is the best. A cell is distinguishable from it if the 95 % interval of its difference to the best does not contain
0: Welch's interval for a mean; a stratified bootstrap interval for a median or an IQM, and where no two runs differ. The best
cell and all cells not distinguishable from it are bold. Nothing is bold if all are indistinguishable, or if a cell has only one
run. There is no correction for multiple comparisons.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qllm_exp.errors import UserError, choose
from qllm_exp.results.records import keys
from qllm_exp.results.records.method_names import short_names
from qllm_exp.results.records.metric_names import check_metric
from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Record
from qllm_exp.results.statistics import aggregate, sample_units
from qllm_exp.results.statistics.aggregate import Array, Estimate
from qllm_exp.results.statistics.comparison import welch_interval
from qllm_exp.results.statistics.normalise import Normalisation, normalise

STATISTICS = ("mean", "median", "iqm")
_MASKED_NOTE = (
    "Runs with env.mask_ineffective=true (all lbf runs from before this option existed): actions without effect are "
    "unavailable, which makes lbf easier than as published (false, the default)."
)
_RULES_NOTE = (
    "Runs with env.rules=pettingzoo: mpe by the rules of PettingZoo. Their returns cannot be compared with those of VMAS's rules "
    "(vmas, the default)."
)

Labels = tuple[Any, ...]  # values of the keys of a row or column
Place = tuple[Labels, Labels]  # row and column
ComparisonGroup = Callable[[Labels, Labels], Labels]  # row and column to the label of the cells that are compared


@dataclass(frozen=True)
class Cell:
    """Scores of some runs.

    Attributes:
        estimate: the statistic with its 95 % interval; `estimate.runs` is the number of units of the task with the fewest.
        runs: all runs in the cell.
        scores: for each task [units].
        functions: whether the units are functions (`sample_units`).
        bold: best, or not distinguishable from the best (see the module).
    """

    estimate: Estimate
    runs: tuple[Record, ...] = ()
    scores: tuple[Array, ...] = ()
    functions: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Pivot:
    """Cells of a table.

    Attributes:
        cells: by row and column.
        normalisation: bounds of the scores; None if scores are returns.
        left_out: records that are in no cell.
    """

    cells: Mapping[Place, Cell]
    normalisation: Normalisation | None
    left_out: tuple[Record, ...]

    @property
    def rows(self) -> list[Labels]:
        """Labels of the rows, sorted."""
        return _sorted({row for row, _ in self.cells})

    @property
    def columns(self) -> list[Labels]:
        """Labels of the columns, sorted."""
        return _sorted({column for _, column in self.cells})


def pivot(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str], metric: str, stat: str) -> Pivot:
    """Return the cells of a table.

    If a cell has several tasks, the scores of the whole table are normalised, and compared cells use their common tasks only.

    Args:
        records: finished runs.
        rows: dotted keys whose values make the rows.
        columns: dotted keys whose values make the columns.
        metric: a metric's name, as in `metric_names.check_metric`.
        stat: 'mean', 'median' or 'iqm'.

    Raises:
        UserError: an unknown metric or statistic, a cell that would pool runs with different settings, or a metric that a task
            does not report.
    """
    named = check_metric(metric, records)
    choose("--stat", stat, STATISTICS)
    groups: dict[Place, list[Record]] = defaultdict(list)
    for record in records:
        groups[_values(record, rows), _values(record, columns)].append(record)
    for (row, column), runs in groups.items():
        _check_poolable(runs, [*rows, *columns], [*row, *column])
    pools_tasks = any(len(keys.tasks(runs)) > 1 for runs in groups.values())
    normalisation = normalise(records, metric) if pools_tasks else None
    comparison_group = _comparison_group(columns)
    kept = _on_common_tasks(groups, comparison_group, normalisation)
    cells = {place: _make_cell(runs, named.key, stat, normalisation) for place, runs in kept.items()}
    used = {id(record) for runs in kept.values() for record in runs}
    left_out = tuple(record for record in records if id(record) not in used)
    if named.higher_is_better:
        cells = _mark_bold(cells, comparison_group, stat)
    return Pivot(cells, normalisation, left_out)


def notes_on_records(records: Sequence[Record], metric: str = "final") -> list[str]:
    """Return the footnotes of a table or figure on what the values of its runs are.

    Args:
        records: finished runs.
        metric: a metric's name.
    """
    marked = {("env.mask_ineffective", True): _MASKED_NOTE, ("env.rules", "pettingzoo"): _RULES_NOTE}
    notes = [
        note for (key, value), note in marked.items() if any(record.settings.get(key) == value for record in records)
    ]
    if metric == "absolute":
        choosing_error, absolute_error = (
            _standard_error([getattr(run, kind) for run in records]) for kind in ("final", "absolute")
        )
        notes.append(
            "Absolute metric: the parameters of a run's best evaluation, evaluated once more. Which evaluation is the best "
            f"depends on its noise{choosing_error}, so the value{absolute_error} may be below that of the last evaluation."
        )
    return notes + _notes_on_other_programs(records)


def _notes_on_other_programs(records: Sequence[Record]) -> list[str]:
    """Return a footnote for each method of another program and what its returns are."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.program:
            groups[record.method, record.unit].append(record)
    notes = []
    for (method, unit), runs in sorted(groups.items()):
        last_steps = " or ".join(f"{step:,}" for step in sorted({run.steps[-1] for run in runs}))
        notes.append(
            f"{method} on {', '.join(keys.tasks(runs))}: runs of another program, whose last evaluation is at step {last_steps}; "
            f"return: {unit}."
        )
    return notes


def _standard_error(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return ' (standard error 0.012 at 1000 episodes)', the median over evaluations; '' if none records its deviation."""
    rows = [row for row in rows if row.get("episodes") and math.isfinite(row.get("return_std", math.nan))]
    if not rows:
        return ""
    error = np.median([row["return_std"] / math.sqrt(row["episodes"]) for row in rows])
    return f" (standard error {error:.2g} at {int(np.median([row['episodes'] for row in rows]))} episodes)"


def rename_methods(records: Sequence[Record], by: Sequence[str]) -> list[Record]:
    """Return the records with the values of some keys as their methods: in figures, a method is a line or a bar.

    Args:
        records: finished runs.
        by: keys as typed: 'mixer'; or 'method' and 'tfcaf.sample', which separates the samples of one procedure.

    Raises:
        UserError: an unknown key, or a method that would pool runs with different settings.
    """
    by_keys = keys.resolve(by, records)
    if by_keys == [keys.METHOD]:
        return list(records)
    groups: dict[tuple[str, Labels], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.task, _values(record, by_keys)].append(record)
    renamed: dict[Path, Record] = {}
    for (_, values), runs in groups.items():
        _check_poolable(runs, by_keys, values)
        present = [(key, value) for key, value in zip(by_keys, values, strict=True) if keys.has(runs[0], key)]
        label = keys.label([key for key, _ in present], [value for _, value in present], short_names(by_keys)) or "-"
        renamed |= {run.path: replace(run, method=label) for run in runs}
    return [renamed[record.path] for record in records]


def statistic(stat: str, tasks: int) -> aggregate.Statistic:
    """Return a statistic by name: over the runs of one task, or as `aggregate` defines it over several tasks.

    Args:
        stat: 'mean', 'median' or 'iqm'.
        tasks: number of tasks.
    """
    if stat == "median" and tasks == 1:
        return lambda scores: np.median(scores[0], axis=-1)  # over several tasks it is the median of the tasks' means
    return aggregate.AGGREGATES[stat]


def difference(x: Sequence[Array], y: Sequence[Array], stat: str) -> Estimate:
    """Return the statistic of X minus that of Y with its 95 % interval: Welch's for a mean, else a stratified bootstrap.

    Args:
        x: scores of X, for each task [runs].
        y: scores of Y, for each task [runs]; the same tasks.
        stat: 'mean', 'median' or 'iqm'.
    """
    function = statistic(stat, len(x))
    fewest = min(task.size for task in (*x, *y))
    observed = float(function(x) - function(y))
    if stat == "mean":
        welch_low, welch_high = welch_interval(x, y)
        if np.isfinite(welch_low):
            return Estimate(observed, welch_low, welch_high, fewest)
    if fewest < 2:
        return Estimate(observed, np.nan, np.nan, fewest)
    resampled = aggregate.resample([*x, *y])
    differences = function(resampled[: len(x)]) - function(resampled[len(x) :])
    low, high = aggregate.percentile_interval(differences)
    return Estimate(observed, float(low), float(high), fewest)


def _values(record: Record, names: Sequence[str]) -> Labels:
    return tuple(keys.value(record, name) for name in names)


def _sorted(labels: set[Labels]) -> list[Labels]:
    return sorted(labels, key=lambda values: [keys.sort_key(value) for value in values])


def _check_poolable(runs: Sequence[Record], names: Sequence[str], values: Sequence[Any]) -> None:
    """Raise UserError if runs of one task differ in more than the seed and the sample of one generation procedure."""
    runs_of_task: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        runs_of_task[run.task].append(run)
    for task, task_runs in runs_of_task.items():
        if len({run.method for run in task_runs}) == 1:
            continue
        differing = keys.differing_keys(task_runs)
        if SAMPLE in differing:
            differing = [key for key in differing if key not in (SAMPLE, FUNCTION)]
        if not differing:
            continue
        key = differing[0]
        example = min((keys.value(run, key) for run in task_runs), key=keys.sort_key)
        group = ", ".join(
            f"{keys.short_name(name)}={value}"
            for name, value in zip(names, values, strict=True)
            if name not in keys.TASK_KEYS
        )
        raise UserError(
            f"On {task}, runs with {group or 'equal rows and columns'} differ in {', '.join(differing[:5])} and would be "
            f"pooled. Add the key as a row, a column, an axis or with --by (e.g. {key}), or select one value: "
            f"--only {key}={example}."
        )


def _comparison_group(columns: Sequence[str]) -> ComparisonGroup:
    """Return which cells are compared: those of a column if the columns are tasks, else those of a row."""
    if any(key in keys.TASK_KEYS for key in columns):
        return lambda row, column: column
    return lambda row, column: row


def _on_common_tasks(
    groups: Mapping[Place, list[Record]], comparison_group: ComparisonGroup, normalisation: Normalisation | None
) -> dict[Place, list[Record]]:
    """Return the runs on tasks that have a scale and that all compared cells have."""
    if normalisation is None:
        return dict(groups)
    scaled = {
        place: [run for run in runs if normalisation.bounds_of(run) is not None] for place, runs in groups.items()
    }
    common: dict[Labels, set[str]] = {}
    for place, runs in scaled.items():
        tasks = {run.task for run in runs}
        group = comparison_group(*place)
        common[group] = common.get(group, tasks) & tasks
    kept = {
        place: [run for run in runs if run.task in common[comparison_group(*place)]] for place, runs in scaled.items()
    }
    return {place: runs for place, runs in kept.items() if runs}


def _make_cell(runs: Sequence[Record], result_key: str, stat: str, normalisation: Normalisation | None) -> Cell:
    scores = sample_units.scores(runs, keys.tasks(runs), result_key, normalisation)
    if all(np.isfinite(task_scores).all() for task_scores in scores):
        estimate = aggregate.estimate(scores, statistic(stat, len(scores)))
    else:
        estimate = Estimate(np.nan, np.nan, np.nan, min(task_scores.size for task_scores in scores))
    return Cell(estimate, tuple(runs), tuple(scores), sample_units.counts_functions(runs))


def _mark_bold(cells: Mapping[Place, Cell], comparison_group: ComparisonGroup, stat: str) -> dict[Place, Cell]:
    groups: dict[Labels, list[Place]] = defaultdict(list)
    for place, cell in cells.items():
        if np.isfinite(cell.estimate.value):
            groups[comparison_group(*place)].append(place)
    bold: set[Place] = set()
    for places in groups.values():
        best = max(places, key=lambda place: cells[place].estimate.value)
        if any(cells[place].estimate.runs < 2 for place in places):
            continue
        tolerance = 1e-9 * abs(cells[best].estimate.value)
        indistinguishable = [best]
        for place in places:
            if place == best:
                continue
            estimate = difference(cells[place].scores, cells[best].scores, stat)
            if estimate.low <= tolerance and estimate.high >= -tolerance:
                indistinguishable.append(place)
        if len(indistinguishable) < len(places):
            bold.update(indistinguishable)
    return {place: replace(cell, bold=place in bold) for place, cell in cells.items()}
