"""Aligns the learning curves of the runs of one method on one task to common environment steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qllm_exp.errors import UserError
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.aggregate import Array


@dataclass(frozen=True)
class Curves:
    """Learning curves at common steps.

    Attributes:
        runs: the runs, in the order of the rows of `returns`.
        steps: [evaluations] environment steps.
        returns: [runs, evaluations].
        note: which evaluations are used, if some were left out; else ''.
    """

    runs: tuple[Record, ...]
    steps: tuple[int, ...]
    returns: Array
    note: str


def align(runs: Sequence[Record]) -> Curves:
    """Return the evaluations of runs at the environment steps that all of them have.

    Steps at which any of the runs was not evaluated are left out; nothing is interpolated.

    Args:
        runs: the runs of one method on one task.

    Raises:
        UserError: the evaluation steps differ, and fewer than two are shared. The message names two runs and their steps.
    """
    shared_steps = set.intersection(*(set(run.steps) for run in runs))
    all_steps = set().union(*(run.steps for run in runs))
    if len(shared_steps) == len(all_steps):
        returns = [list(run.returns) for run in runs]
        return Curves(tuple(runs), tuple(sorted(shared_steps)), np.array(returns, dtype=np.float64), "")
    if len(shared_steps) < 2:
        first = runs[0]
        other = min(runs[1:], key=lambda run: len(set(run.steps) & set(first.steps)))
        raise UserError(
            f"The runs of {first.method} on {first.task} were evaluated at different steps and share {len(shared_steps)}: "
            f"{first.path} {_describe(first.steps)}, {other.path} {_describe(other.steps)}. "
            "Compare runs with the same train.evaluation.every, or leave one of the two out."
        )
    returns = [
        [value for step, value in zip(run.steps, run.returns, strict=True) if step in shared_steps] for run in runs
    ]
    note = f"evaluations at the {len(shared_steps)} of {len(all_steps)} steps that all {len(runs)} runs share"
    return Curves(tuple(runs), tuple(sorted(shared_steps)), np.array(returns, dtype=np.float64), note)


def _describe(steps: Sequence[int]) -> str:
    if len(steps) <= 4:
        return f"at {', '.join(map(str, steps))}"
    return f"at {len(steps)} steps ({steps[0]}, {steps[1]}, ..., {steps[-1]})"
