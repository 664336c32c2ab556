"""Aggregate scores over runs and tasks, with intervals over runs (Agarwal et al., NeurIPS 2021; Gorsane et al., NeurIPS 2022).

Scores are [runs, tasks], or one array [runs] per task if tasks have different numbers of runs. Every task has the same weight,
however many runs it has. A run is one seed; runs are independent.

A 95 % percentile bootstrap interval is too narrow for few runs. In simulated experiments with normal scores (4000 for the mean,
2000 for the IQM; tests/unit/results/test_statistics_coverage.py) its coverage of the true value is:

    runs                              3      5     10     20
    mean, one task                   74 %   84 %   89 %   93 %
    IQM, stratified over 4 tasks     86 %   91 %   94 %   94 %

Hence `MIN_RUNS`: results of fewer runs are marked, and their intervals do not support conclusions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllm_exp.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]
Scores = Array | Sequence[Array]  # [runs, tasks], or for each task [runs]
Statistic = Callable[[Sequence[Array]], Array]  # for each task [..., runs] to [...]

RESAMPLES = 2000
SEED = 0  # of all resampling: equal scores give equal intervals
MIN_RUNS = 5  # with fewer runs an interval is marked as too narrow (Gorsane et al. recommend ten)


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: the statistic.
        low: lower end of the interval; nan if a task has only one run.
        high: upper end of the interval; nan if a task has only one run.
        runs: number of runs of the task with the fewest.
    """

    value: float
    low: float
    high: float
    runs: int

    @property
    def too_few_runs(self) -> bool:
        """Whether there are too few runs to draw conclusions from the interval."""
        return self.runs < MIN_RUNS


def split_by_task(scores: Scores) -> list[Array]:
    """Return one array [runs] per task.

    Args:
        scores: [runs, tasks], or for each task [runs].

    Raises:
        UserError: a task has no runs, or a score is not finite.
        ValueError: the scores have another shape.
    """
    columns = list(scores.T) if isinstance(scores, np.ndarray) and scores.ndim == 2 else list(scores)
    tasks = [np.asarray(column, dtype=np.float64) for column in columns]
    if not tasks or any(task.ndim != 1 for task in tasks):
        raise ValueError("Scores must be an array [runs, tasks], or a list with one array [runs] per task.")
    for number, task in enumerate(tasks, 1):
        if not task.size:
            raise UserError(f"Task {number} of {len(tasks)} has no run. Leave that task out.")
        if not np.isfinite(task).all():
            raise UserError(
                f"Task {number} of {len(tasks)} has a score that is not finite. Leave out that task, or the run that diverged."
            )
    return tasks


# Statistics: for each task [..., runs] to [...]


def mean(tasks: Sequence[Array]) -> Array:
    """Return the mean over tasks of the mean over runs."""
    result: Array = np.mean([task.mean(-1) for task in tasks], axis=0)
    return result


def median(tasks: Sequence[Array]) -> Array:
    """Return the median over tasks of the mean over runs."""
    result: Array = np.median([task.mean(-1) for task in tasks], axis=0)
    return result


def iqm(tasks: Sequence[Array]) -> Array:
    """Return the interquartile mean: the mean of the middle half of all scores, pooled over runs and tasks.

    Exactly half of the total weight is averaged: if a quarter of the scores is not a whole number, the two scores at the edges
    count in part. (With a multiple of four scores this equals the 25 % trimmed mean of rliable, which otherwise rounds the number
    of trimmed scores down.) A score of a task with n runs has weight 1/n, so all tasks have the same weight.

    Source: Agarwal et al. 2021, section 4.3.
    """
    values = np.concatenate(tasks, axis=-1)
    weights = np.concatenate([np.full(task.shape[-1], 1 / (len(tasks) * task.shape[-1])) for task in tasks])
    order = np.argsort(values, axis=-1, kind="stable")
    sorted_weights = weights[order]
    ends = np.cumsum(sorted_weights, axis=-1)
    inside = np.clip(np.minimum(ends, 0.75) - np.maximum(ends - sorted_weights, 0.25), 0, None)
    result: Array = (np.take_along_axis(values, order, axis=-1) * inside).sum(-1) / inside.sum(-1)
    return result


def optimality_gap(tasks: Sequence[Array], target: float = 1.0) -> Array:
    """Return the mean distance of scores below a target; scores above it count as the target.

    Source: Agarwal et al. 2021, section 4.3.
    """
    return target - mean([np.minimum(task, target) for task in tasks])


AGGREGATES: dict[str, Statistic] = {
    "mean": mean,
    "median": median,
    "iqm": iqm,
    "optimality_gap": optimality_gap,
}  # by name


# Intervals


def estimate(scores: Scores, statistic: Statistic = iqm, confidence: float = 0.95) -> Estimate:
    """Return a statistic of the scores with its stratified bootstrap interval.

    Args:
        scores: [runs, tasks], or for each task [runs]; normalised if there are several tasks.
        statistic: e.g. `iqm`, `mean`, `median`, `optimality_gap`.
        confidence: coverage of the interval.
    """
    tasks = split_by_task(scores)
    fewest = min(task.size for task in tasks)
    value = float(statistic(tasks))
    if fewest < 2:
        return Estimate(value, np.nan, np.nan, fewest)
    low, high = percentile_interval(statistic(resample(tasks)), confidence)
    return Estimate(value, float(low), float(high), fewest)


def resample(tasks: Sequence[Array], resamples: int = RESAMPLES, seed: int = SEED) -> list[Array]:
    """Draw stratified bootstrap samples: runs are drawn with replacement within each task.

    Args:
        tasks: for each task [runs].
        resamples: number of bootstrap samples.
        seed: of the random generator.

    Returns:
        For each task [resamples, runs].

    Source: Agarwal et al. 2021, section 4.1.
    """
    random = np.random.default_rng(seed)
    return [task[random.integers(task.size, size=(resamples, task.size))] for task in tasks]


def percentile_interval(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Return the percentile interval of resampled statistics (Efron 1979).

    Args:
        values: [resamples, ...].
        confidence: coverage of the interval.

    Returns:
        Low and high, each [...].
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_mean(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Return the percentile bootstrap interval of the mean over runs, pointwise: for each evaluation separately.

    Args:
        values: [runs, ...], one score per run (and evaluation).
        confidence: coverage of the interval.

    Returns:
        Low and high, each [...]; nan with a single run.
    """
    runs = values.shape[0]
    if runs < 2:
        undefined = np.full(values.shape[1:], np.nan)
        return undefined, undefined
    weights = bootstrap_counts(runs, np.random.default_rng(SEED)) / runs
    return percentile_interval(np.tensordot(weights, values, axes=1), confidence)


def bootstrap_counts(runs: int, random: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Return how often each run is drawn in each bootstrap sample: [resamples, runs], where each row sums to `runs`."""
    picks = random.integers(runs, size=(resamples, runs)) + runs * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * runs).reshape(resamples, runs).astype(np.float64)
