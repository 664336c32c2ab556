"""The independent samples of a method on a task: seeds, or credit-assignment functions that a language model wrote.

Seeds that share a credit-assignment function are not independent samples of what the model writes. If a task has runs of several
functions (tfcaf.sample), each function counts once, as the mean over its seeds, and functions are resampled.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qllm_exp.results.records.reader import FUNCTION, Record
from qllm_exp.results.statistics.aggregate import MIN_RUNS, Array
from qllm_exp.results.statistics.normalise import Normalisation

FUNCTIONS_NOTE = (
    "Several functions of a language model (tfcaf.sample): each function counts once, as the mean over its seeds."
)


def counts_functions(runs: Sequence[Record]) -> bool:
    """Return whether functions are the units: a task has several.

    Args:
        runs: runs of one method, or runs that differ only in the function.
    """
    return len({(run.task, _function(run)) for run in runs}) > len({run.task for run in runs})


def unit_means(runs: Sequence[Record], values: Array, functions: bool) -> Array:
    """Return the means over the runs of each unit, in the order of their first runs.

    Args:
        runs: runs on one task.
        values: [runs, ...].
        functions: whether functions are the units; else runs are.

    Returns:
        [units, ...].
    """
    if not functions:
        return values
    indices: dict[Any, list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        indices[_function(run)].append(index)
    return np.array([values[unit_indices].mean(0) for unit_indices in indices.values()])


def scores(
    runs: Sequence[Record], tasks: Sequence[str], result_key: str, normalisation: Normalisation | None = None
) -> list[Array]:
    """Return the scores of runs of one method, as `aggregate` and `comparison` take them: for each task [units], by seed.

    Args:
        runs: at least one run for each task.
        tasks: the tasks, in the order of the result.
        result_key: what `Record.score` takes: 'final_return', 'absolute_return', or 'win_mean' and the like.
        normalisation: bounds of all runs; None: scores are as recorded.
    """
    functions = counts_functions(runs)
    runs_of_task: dict[str, list[Record]] = {task: [] for task in tasks}
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        runs_of_task[run.task].append(run)
    task_scores = []
    for task_runs in runs_of_task.values():
        values = np.array([_score(run, result_key, normalisation) for run in task_runs])
        task_scores.append(unit_means(task_runs, values, functions))
    return task_scores


def _score(run: Record, result_key: str, normalisation: Normalisation | None) -> float:
    value = run.score(result_key)
    bounds = normalisation.bounds_of(run) if normalisation is not None else None
    return value if bounds is None else float(bounds(np.array(value)))


def min_units(runs: Sequence[Record]) -> int:
    """Return the number of units of the task that has the fewest."""
    functions = counts_functions(runs)
    units: dict[str, set[Any]] = defaultdict(set)
    for run in runs:
        units[run.task].add(_function(run) if functions else run.path)
    return min(map(len, units.values()))


def format_n(number: int, functions: bool) -> str:
    """Return 'n=5' for seeds, 'n=3 functions' for functions."""
    return f"n={number} functions" if functions else f"n={number}"


def n_label(runs: Sequence[Record]) -> str:
    """Return `format_n` for the runs of one method."""
    return format_n(min_units(runs), counts_functions(runs))


def legend_label(method: str, runs: Sequence[Record]) -> str:
    """Return 'qmix (n=5)' for the runs of one method."""
    return f"{method} ({n_label(runs)})"


def unit_notes(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return the footnotes about units, for a figure that shows several groups of runs."""
    notes = [FUNCTIONS_NOTE] if any(map(counts_functions, groups)) else []
    return notes + small_n_notes(map(min_units, groups), unit_name(groups))


def small_n_notes(numbers: Iterable[int], unit: str = "seeds") -> list[str]:
    """Return a footnote if one of the numbers of units is small, else nothing.

    Args:
        numbers: number of units of each group.
        unit: what is counted (`unit_name`).
    """
    if min(numbers) >= MIN_RUNS:
        return []
    return [
        f"Fewer than {MIN_RUNS} {unit} where n is below {MIN_RUNS}: those intervals are too narrow for conclusions."
    ]


def unit_name(groups: Sequence[Sequence[Record]]) -> str:
    """Return what n counts in a figure of several groups of runs: 'seeds', or 'seeds or functions'."""
    return "seeds or functions" if any(map(counts_functions, groups)) else "seeds"


def _function(record: Record) -> Any:
    return record.settings.get(FUNCTION)
