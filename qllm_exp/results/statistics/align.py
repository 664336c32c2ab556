"""Learning curves of the runs of one method on one task, put on the same environment steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.aggregate import Array


@dataclass(frozen=True)
class Curves:
    """Learning curves on common steps.

    Attributes:
        runs: in the order of the rows. steps: [evaluations] environment steps. returns: [runs, evaluations].
        note: the rule, in words, where evaluations were left out by it; else ''.
    """

    runs: tuple[Record, ...]
    steps: tuple[int, ...]
    returns: Array
    note: str


def align(runs: Sequence[Record]) -> Curves:
    """The evaluations of the runs of one method on one task, at the environment steps that all of them have.

    The rule: steps at which any of the runs was not evaluated are left out; nothing is interpolated.

    Raises:
        UserError: where the grids differ and fewer than two steps are shared. It names two runs and their grids.
    """
    shared = set.intersection(*(set(one.steps) for one in runs))
    every = set().union(*(one.steps for one in runs))
    ragged = len(shared) < len(every)
    if ragged and len(shared) < 2:
        first = runs[0]
        other = min(runs[1:], key=lambda one: len(set(one.steps) & set(first.steps)))
        raise UserError(
            f"The runs of {first.method} on {first.task} were evaluated at different steps and share {len(shared)}: "
            f"{first.path} {_grid(first.steps)}, {other.path} {_grid(other.steps)}. "
            "Compare runs with one train.evaluation.every, or leave one of the two out."
        )
    if ragged:
        returns = [
            [value for step, value in zip(one.steps, one.returns, strict=True) if step in shared] for one in runs
        ]
    else:
        returns = [list(one.returns) for one in runs]
    note = f"evaluations at the {len(shared)} of {len(every)} steps that all {len(runs)} runs share" if ragged else ""
    return Curves(tuple(runs), tuple(sorted(shared)), np.array(returns, dtype=np.float64), note)


def _grid(steps: Sequence[int]) -> str:
    if len(steps) <= 4:
        return f"at {', '.join(map(str, steps))}"
    return f"at {len(steps)} steps ({steps[0]}, {steps[1]}, ..., {steps[-1]})"
