"""Distributions over runs: performance profiles, and environment steps to reach a return."""

from dataclasses import dataclass

import numpy as np

from qllm_exp.results.statistics.aggregate import (
    MIN_RUNS,
    RESAMPLES,
    SEED,
    Array,
    Scores,
    bootstrap_counts,
    percentile_interval,
    split_by_task,
)


@dataclass(frozen=True)
class Profile:
    """Fraction of runs above each threshold.

    Attributes:
        thresholds: [K].
        share: [K] fraction of runs.
        low: [K] lower end of the band.
        high: [K] upper end of the band.
        runs: number of runs of the task with the fewest.
    """

    thresholds: Array
    share: Array
    low: Array
    high: Array
    runs: int

    @property
    def too_few_runs(self) -> bool:
        """Whether there are too few runs to draw conclusions from the band."""
        return self.runs < MIN_RUNS


@dataclass(frozen=True)
class StepsTo:
    """Environment steps to reach a return.

    Attributes:
        steps: [runs]; inf for a run that never reached the return (censored at its budget).
        reached: number of runs that reached the return.
        median: over runs; inf means that the return is not reached within the budget.
        low: lower end of the bootstrap interval of the median.
        high: upper end of the bootstrap interval of the median.
    """

    steps: Array
    reached: int
    median: float
    low: float
    high: float

    @property
    def runs(self) -> int:
        """Number of runs."""
        return int(self.steps.size)

    @property
    def too_few_runs(self) -> bool:
        """Whether there are too few runs to draw conclusions from the interval."""
        return self.runs < MIN_RUNS


def performance_profile(scores: Scores, thresholds: Array, confidence: float = 0.95) -> Profile:
    """Return the run-score distribution: the fraction of runs that score above a threshold, averaged over tasks.

    The band is a stratified percentile bootstrap interval, pointwise: for each threshold separately.

    Args:
        scores: [runs, tasks], or for each task [runs]; normalised.
        thresholds: [K].
        confidence: coverage of the band.

    Source: Agarwal et al. 2021, section 4.2.
    """
    tasks = split_by_task(scores)
    above = [(task[:, None] > thresholds).astype(np.float64) for task in tasks]
    share = np.mean([task_above.mean(0) for task_above in above], axis=0)
    fewest = min(task.size for task in tasks)
    if fewest < 2:
        undefined = np.full(thresholds.shape, np.nan)
        return Profile(thresholds, share, undefined, undefined, fewest)
    random = np.random.default_rng(SEED)
    resampled = np.mean(
        [bootstrap_counts(len(task_above), random) @ task_above / len(task_above) for task_above in above], axis=0
    )
    low, high = percentile_interval(resampled, confidence)
    return Profile(thresholds, share, low, high, fewest)


def steps_to(steps: Array, returns: Array, target: float, confidence: float = 0.95) -> StepsTo:
    """Return the sample efficiency: the step of the first evaluation at or above a return.

    Nothing is interpolated, because the return between two evaluations is unknown. The result is therefore exact to one
    evaluation interval, and too small only by evaluation noise. A run that never reaches the return is censored: in the median
    it counts as later than every step, so the median is inf if at least half of the runs are censored.

    Args:
        steps: [evaluations], increasing.
        returns: [runs, evaluations].
        target: the return to reach, e.g. 0.9 of the best known return.
        confidence: coverage of the interval.
    """
    reached = returns >= target
    first = np.where(reached.any(1), np.asarray(steps, dtype=np.float64)[reached.argmax(1)], np.inf)
    number_reached, runs = int(reached.any(1).sum()), len(first)
    median = float(np.median(first))
    if runs < 2:
        return StepsTo(first, number_reached, median, np.nan, np.nan)
    picks = np.random.default_rng(SEED).integers(runs, size=(RESAMPLES, runs))
    medians, tail = np.median(first[picks], axis=1), (1 - confidence) / 2
    # Rounded outwards to a resampled median: one cannot interpolate between a number and inf.
    low = float(np.quantile(medians, tail, method="lower"))
    high = float(np.quantile(medians, 1 - tail, method="higher"))
    return StepsTo(first, number_reached, median, low, high)
