"""What is counted of the runs that are one method on a task: seeds, or functions that a language model wrote.

Seeds that share a credit-assignment function are no independent samples of what the model writes. Where a task has runs of several
functions (tfcaf.sample), each function counts once, as the mean over its seeds, and functions are what is resampled.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qllm_exp.results.records.reader import FUNCTION, Record
from qllm_exp.results.statistics.aggregate import ENOUGH, Array
from qllm_exp.results.statistics.normalise import Normalised

RULE = "Several functions of a language model (tfcaf.sample): each counts once, as the mean over its seeds."


def of_functions(runs: Sequence[Record]) -> bool:
    """Whether functions are counted: a task has several. The runs are of one method, or differ in the function alone."""
    return len({(one.task, _function(one)) for one in runs}) > len({one.task for one in runs})


def per_unit(runs: Sequence[Record], values: Array, functions: bool) -> Array:
    """Means over the runs of each unit, in the order of the first of them.

    Args:
        runs: of one task. values: [runs, ...]. functions: whether functions are the units, else runs are.

    Returns:
        [units, ...]
    """
    if not functions:
        return values
    places: dict[Any, list[int]] = defaultdict(list)
    for at, one in enumerate(runs):
        places[_function(one)].append(at)
    return np.array([values[part].mean(0) for part in places.values()])


def scores(
    runs: Sequence[Record], tasks: Sequence[str], figure: str, normalised: Normalised | None = None
) -> list[Array]:
    """Scores of runs that are one, as the functions of `statistics` and `comparison` take them: for each task [units], by seed.

    Args:
        tasks: of each at least one run is there. figure: of result.json: 'final_return' or 'absolute_return'.
        normalised: bounds to apply, which all the runs have; None: returns as they are.
    """
    functions = of_functions(runs)
    by_task: dict[str, list[Record]] = {task: [] for task in tasks}
    for one in sorted(runs, key=lambda one: (one.seed, one.name)):
        by_task[one.task].append(one)
    found = []
    for alike in by_task.values():
        returns = [float(one.result[figure]) for one in alike]
        bounds = [None if normalised is None else normalised.of(one) for one in alike]
        scaled = [
            value if bound is None else float(bound(np.array(value)))
            for value, bound in zip(returns, bounds, strict=True)
        ]
        found.append(per_unit(alike, np.array(scaled), functions))
    return found


def fewest(runs: Sequence[Record]) -> int:
    """Units of the task that has the fewest."""
    by_task: dict[str, set[Any]] = defaultdict(set)
    functions = of_functions(runs)
    for one in runs:
        by_task[one.task].add(_function(one) if functions else one.path)
    return min(map(len, by_task.values()))


def said(number: int, functions: bool) -> str:
    """'n=5' of seeds, 'n=3 functions'."""
    return f"n={number}{' functions' * functions}"


def counted(runs: Sequence[Record]) -> str:
    """`said` of runs that are one."""
    return said(fewest(runs), of_functions(runs))


def notes(groups: Sequence[Sequence[Record]]) -> list[str]:
    """What is to be said of the units of several groups of runs, below the figure that shows them."""
    return [RULE] * any(map(of_functions, groups)) + few(map(fewest, groups), kind(groups))


def few(numbers: Iterable[int], what: str = "seeds") -> list[str]:
    """A note where one of the numbers of units is small. `what`: `kind`."""
    note = f"Fewer than {ENOUGH} {what}, where n says so: the interval is too narrow to conclude from."
    return [note] * (min(numbers) < ENOUGH)


def kind(groups: Sequence[Sequence[Record]]) -> str:
    """What n counts in a figure of several groups of runs: 'seeds', or 'seeds or functions'."""
    return "seeds or functions" if any(map(of_functions, groups)) else "seeds"


def _function(record: Record) -> Any:
    return record.settings.get(FUNCTION)
