"""Aggregate scores over runs and tasks, with intervals over runs (Agarwal et al., NeurIPS 2021; Gorsane et al., NeurIPS 2022).

Scores are [runs, tasks], or one array [runs] per task where tasks have unequal numbers of runs. Every task counts the same,
however many runs it has. A run is one seed; runs are independent.

A 95 % percentile bootstrap interval of few runs is too narrow. In simulated experiments with normal scores (4000 for the mean, 2000
for the IQM; tests/unit/test_statistics_coverage.py) it contains the true value in this share of them:

    runs                              3      5     10     20
    mean, one task                   74 %   84 %   89 %   93 %
    IQM, stratified over 4 tasks     86 %   91 %   94 %   94 %

Hence `ENOUGH`: figures of fewer runs are marked, and nothing should be concluded from their intervals.
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
ENOUGH = 5  # runs below which an interval is marked (Gorsane et al. ask for ten)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, [low, high]; both nan where a task has one run only. `runs`: fewest runs of a task."""

    value: float
    low: float
    high: float
    runs: int

    @property
    def flag(self) -> bool:
        """Whether there are too few runs to conclude from the interval."""
        return self.runs < ENOUGH


def by_task(scores: Scores) -> list[Array]:
    """One array [runs] per task. UserError for a task without runs, and for a score that is no finite number."""
    given = list(scores.T) if isinstance(scores, np.ndarray) and scores.ndim == 2 else list(scores)
    tasks = [np.asarray(one, dtype=np.float64) for one in given]
    if not tasks or any(one.ndim != 1 for one in tasks):
        raise ValueError("Scores are an array [runs, tasks], or a list with one array [runs] per task.")
    for at, one in enumerate(tasks):
        if not one.size or not np.isfinite(one).all():
            wrong = "has no run" if not one.size else "has a score that is no finite number"
            raise UserError(f"Task {at + 1} of {len(tasks)} {wrong}. Leave out that task, or the run that diverged.")
    return tasks


# Statistics: for each task [..., runs] to [...]


def mean(tasks: Sequence[Array]) -> Array:
    """Mean over tasks of the mean over runs."""
    over_tasks: Array = np.mean([one.mean(-1) for one in tasks], axis=0)
    return over_tasks


def median(tasks: Sequence[Array]) -> Array:
    """Median over tasks of the mean over runs."""
    over_tasks: Array = np.median([one.mean(-1) for one in tasks], axis=0)
    return over_tasks


def iqm(tasks: Sequence[Array]) -> Array:
    """Interquartile mean: the mean of the middle half of all scores, runs and tasks together (Agarwal et al., section 4.3).

    Exactly half of the weight is averaged: where a quarter of the scores is no whole number, the two scores at the edges count
    in part. (With a multiple of four scores this is the 25 % trimmed mean of rliable, which otherwise trims the whole number
    below.) A score of a task with n runs weighs 1/n, so that tasks count the same.
    """
    values = np.concatenate(tasks, axis=-1)
    weights = np.concatenate([np.full(one.shape[-1], 1 / (len(tasks) * one.shape[-1])) for one in tasks])
    order = np.argsort(values, axis=-1, kind="stable")
    sizes = weights[order]
    ends = np.cumsum(sizes, axis=-1)
    inside = np.clip(np.minimum(ends, 0.75) - np.maximum(ends - sizes, 0.25), 0, None)
    middle: Array = (np.take_along_axis(values, order, axis=-1) * inside).sum(-1) / inside.sum(-1)
    return middle


def optimality_gap(tasks: Sequence[Array], target: float = 1.0) -> Array:
    """How far scores are from a target on average; those above it count as the target (Agarwal et al., section 4.3)."""
    return target - mean([np.minimum(one, target) for one in tasks])


AGGREGATES: dict[str, Statistic] = {
    "mean": mean,
    "median": median,
    "iqm": iqm,
    "optimality_gap": optimality_gap,
}  # by name


# Intervals


def estimate(scores: Scores, statistic: Statistic = iqm, confidence: float = 0.95) -> Estimate:
    """A statistic of the scores with its stratified bootstrap interval.

    Args:
        scores: [runs, tasks] or for each task [runs]; normalised where the statistic is over several tasks.
        statistic: e.g. `iqm`, `mean`, `median`, `optimality_gap`.
    """
    tasks = by_task(scores)
    fewest = min(one.size for one in tasks)
    value = float(statistic(tasks))
    if fewest < 2:
        return Estimate(value, np.nan, np.nan, fewest)
    low, high = interval(statistic(resampled(tasks)), confidence)
    return Estimate(value, float(low), float(high), fewest)


def resampled(tasks: Sequence[Array], resamples: int = RESAMPLES, seed: int = SEED) -> list[Array]:
    """Stratified bootstrap (Agarwal et al., section 4.1): runs are drawn with replacement within each task.

    Args:
        tasks: for each task [runs].

    Returns:
        For each task [resamples, runs].
    """
    random = np.random.default_rng(seed)
    return [one[random.integers(one.size, size=(resamples, one.size))] for one in tasks]


def interval(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Percentile interval of resampled statistics (Efron 1979): [resamples, ...] to low and high, each [...]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_mean(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the mean over runs, at each evaluation by itself (pointwise).

    Args:
        values: [runs, ...] one score per run (and evaluation). confidence: e.g. 0.95.

    Returns:
        low and high, each [...]. NaN with a single run.
    """
    runs = values.shape[0]
    if runs < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    shares = draws(runs, np.random.default_rng(SEED)) / runs
    return interval(np.tensordot(shares, values, axes=1), confidence)


def draws(runs: int, random: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """How often each run is drawn in each bootstrap resample: [resamples, runs], rows add up to `runs`."""
    picks = random.integers(runs, size=(resamples, runs)) + runs * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * runs).reshape(resamples, runs).astype(np.float64)
