"""Cells of a table: which runs are one, what they score, and which are the best or not told apart from it.

*Bold.* Of the cells that compare (those of one row; of one column where the columns are tasks) the one with the highest value is
the best. A cell is told apart from it where the 95 % interval of its difference to the best does not contain 0: Welch's interval
for a mean; a stratified bootstrap interval for a median or an IQM, and where no run differs from another. The best and all that
are not told apart from it are bold. Nothing is bold where none is told apart, or where a cell has one run. Several comparisons are
not corrected for.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qllm_exp.errors import UserError, choose
from qllm_exp.results.records import keys
from qllm_exp.results.records.method_names import words
from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Record
from qllm_exp.results.statistics import aggregate, sample_units
from qllm_exp.results.statistics.aggregate import Array, Estimate
from qllm_exp.results.statistics.comparison import welch
from qllm_exp.results.statistics.normalise import Normalised, normalise

METRICS = {"final": "final_return", "absolute": "absolute_return"}
METRIC_WORDS = {"final": "Return of the last evaluation", "absolute": "Absolute metric (best parameters of each run)"}
STATISTICS = ("mean", "median", "iqm")

Key = tuple[Any, ...]
Group = Callable[[Key, Key], Key]


@dataclass(frozen=True)
class Cell:
    """What some runs score. `estimate`: with its 95 % interval, `runs` being the fewest units of a task.

    Attributes:
        runs: all that are in it. scores: for each task [units]. functions: whether these are functions (`units`).
        bold: see the module.
    """

    estimate: Estimate
    runs: tuple[Record, ...] = ()
    scores: tuple[Array, ...] = ()
    functions: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Pivot:
    """Cells by row and column. `normalised`: None where scores are returns. `left_out`: records that are in no cell."""

    cells: Mapping[tuple[Key, Key], Cell]
    normalised: Normalised | None
    left_out: tuple[Record, ...]

    @property
    def rows(self) -> list[Key]:
        return _sorted({row for row, _ in self.cells})

    @property
    def columns(self) -> list[Key]:
        return _sorted({column for _, column in self.cells})


def pivot(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str], metric: str, stat: str) -> Pivot:
    """The cells of a table whose rows and columns are the values of dotted keys.

    Where a cell has several tasks, scores are normalised in the whole table, and cells that compare are over their common tasks.

    Raises:
        UserError: for an unknown metric or statistic; where a cell would mix runs of different settings.
    """
    choose("--metric", metric, METRICS)
    choose("--stat", stat, STATISTICS)
    groups: dict[tuple[Key, Key], list[Record]] = defaultdict(list)
    for one in records:
        groups[_values(one, rows), _values(one, columns)].append(one)
    for (row, column), runs in groups.items():
        _check_alike(runs, [*rows, *columns], [*row, *column])
    several = any(len(keys.tasks(runs)) > 1 for runs in groups.values())
    normalised = normalise(records) if several else None
    compare = _who_compares(rows, columns)
    kept = _on_common_tasks(groups, compare, normalised)
    cells = {place: _cell(runs, METRICS[metric], stat, normalised) for place, runs in kept.items()}
    inside = {id(one) for runs in kept.values() for one in runs}
    return Pivot(_with_bold(cells, compare, stat), normalised, tuple(one for one in records if id(one) not in inside))


def renamed(records: Sequence[Record], by: Sequence[str]) -> list[Record]:
    """The records with the values of some keys as their methods: for figures, in which a method is a line or a bar.

    Args:
        by: as a person types them: 'mixer'; or 'method' and 'tfcaf.sample', which draws samples of one procedure apart.

    Raises:
        UserError: for an unknown key; where a method would mix runs of different settings.
    """
    names = keys.resolve(by, records)
    if names == [keys.METHOD]:
        return list(records)
    groups: dict[tuple[str, Key], list[Record]] = defaultdict(list)
    for one in records:
        groups[one.task, _values(one, names)].append(one)
    found: dict[Path, Record] = {}
    for (_, values), runs in groups.items():
        _check_alike(runs, names, values)
        had = [(key, value) for key, value in zip(names, values, strict=True) if keys.has(runs[0], key)]
        label = keys.label([key for key, _ in had], [value for _, value in had], words(names)) or "-"
        found |= {one.path: replace(one, method=label) for one in runs}
    return [found[one.path] for one in records]


def statistic(stat: str, tasks: int) -> aggregate.Statistic:
    """'mean', 'median' or 'iqm' over the runs of one task, or as `statistics` has them over several tasks."""
    if stat == "median" and tasks == 1:
        return lambda scores: np.median(scores[0], axis=-1)  # of several tasks it is over the tasks' means
    return aggregate.AGGREGATES[stat]


def gap(x: Sequence[Array], y: Sequence[Array], stat: str) -> Estimate:
    """The statistic of X less that of Y with its 95 % interval: Welch's for a mean, else by stratified bootstrap.

    Args:
        x, y: for each task [runs], of the same tasks.
    """
    of = statistic(stat, len(x))
    fewest = min(one.size for one in (*x, *y))
    seen = float(of(x) - of(y))
    if stat == "mean":
        ends = welch(x, y)
        if np.isfinite(ends[0]):
            return Estimate(seen, *ends, fewest)
    if fewest < 2:
        return Estimate(seen, np.nan, np.nan, fewest)
    drawn = aggregate.resampled([*x, *y])
    low, high = aggregate.interval(of(drawn[: len(x)]) - of(drawn[len(x) :]))
    return Estimate(seen, float(low), float(high), fewest)


def _values(record: Record, names: Sequence[str]) -> Key:
    return tuple(keys.value(record, key) for key in names)


def _sorted(found: set[Key]) -> list[Key]:
    return sorted(found, key=lambda one: [keys.sort_key(value) for value in one])


def _check_alike(runs: Sequence[Record], names: Sequence[str], values: Sequence[Any]) -> None:
    """UserError where runs of one task differ in more than seed and sample of one procedure that writes functions."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for one in runs:
        by_task[one.task].append(one)
    for task, alike in by_task.items():
        if len({one.method for one in alike}) == 1:
            continue
        differing = keys.differing(alike)
        if SAMPLE in differing:
            differing = [key for key in differing if key not in (SAMPLE, FUNCTION)]
        if differing:
            where = ", ".join(
                f"{keys.short(k)}={v}" for k, v in zip(names, values, strict=True) if k not in keys.TASK_KEYS
            )
            raise UserError(
                f"On {task}, runs with {where or 'equal rows and columns'} differ in {', '.join(differing[:5])}, and would be "
                f"mixed as one. Name it too, as a row, a column, an axis or with --by (e.g. {differing[0]}); or choose: "
                f"--only {differing[0]}={min((keys.value(one, differing[0]) for one in alike), key=keys.sort_key)}."
            )


def _who_compares(rows: Sequence[str], columns: Sequence[str]) -> Group:
    if any(key in keys.TASK_KEYS for key in columns):
        return lambda row, column: column
    return lambda row, column: row


def _on_common_tasks(
    groups: Mapping[tuple[Key, Key], list[Record]], compare: Group, normalised: Normalised | None
) -> dict[tuple[Key, Key], list[Record]]:
    """Runs on tasks that have a scale and that all cells which compare have."""
    if normalised is None:
        return dict(groups)
    scaled = {place: [one for one in runs if normalised.of(one) is not None] for place, runs in groups.items()}
    common: dict[Key, set[str]] = {}
    for place, runs in scaled.items():
        found = {one.task for one in runs}
        common[compare(*place)] = common.get(compare(*place), found) & found
    kept = {place: [one for one in runs if one.task in common[compare(*place)]] for place, runs in scaled.items()}
    return {place: runs for place, runs in kept.items() if runs}


def _cell(runs: Sequence[Record], figure: str, stat: str, normalised: Normalised | None) -> Cell:
    scores = sample_units.scores(runs, keys.tasks(runs), figure, normalised)
    if all(np.isfinite(one).all() for one in scores):
        found = aggregate.estimate(scores, statistic(stat, len(scores)))
    else:
        found = Estimate(np.nan, np.nan, np.nan, min(one.size for one in scores))
    return Cell(found, tuple(runs), tuple(scores), sample_units.of_functions(runs))


def _with_bold(cells: Mapping[tuple[Key, Key], Cell], compare: Group, stat: str) -> dict[tuple[Key, Key], Cell]:
    together: dict[Key, list[tuple[Key, Key]]] = defaultdict(list)
    for place, cell in cells.items():
        if np.isfinite(cell.estimate.value):
            together[compare(*place)].append(place)
    bold: set[tuple[Key, Key]] = set()
    for places in together.values():
        best = max(places, key=lambda place: cells[place].estimate.value)
        if any(cells[place].estimate.runs < 2 for place in places):
            continue
        gaps = {one: gap(cells[one].scores, cells[best].scores, stat) for one in places if one != best}
        rounding = 1e-9 * abs(cells[best].estimate.value)
        alike = [best, *(one for one, found in gaps.items() if found.low <= rounding and found.high >= -rounding)]
        if len(alike) < len(places):
            bold.update(alike)
    return {place: replace(cell, bold=place in bold) for place, cell in cells.items()}
