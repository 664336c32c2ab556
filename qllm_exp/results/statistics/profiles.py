"""Distributions over runs: performance profiles, and environment steps until a return is reached."""

from dataclasses import dataclass

import numpy as np

from qllm_exp.results.statistics.aggregate import ENOUGH, RESAMPLES, SEED, Array, Scores, by_task, draws, interval


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold: `share`, `low`, `high` [thresholds]. `runs`: fewest runs of a task."""

    thresholds: Array
    share: Array
    low: Array
    high: Array
    runs: int

    @property
    def flag(self) -> bool:
        """Whether there are too few runs to conclude from the band."""
        return self.runs < ENOUGH


@dataclass(frozen=True)
class StepsTo:
    """Environment steps until a return was reached.

    Attributes:
        steps: [runs] of each run; inf for one that never reached it (censored at its budget).
        reached: number of runs that did.
        median, low, high: over runs, with a bootstrap interval; inf means: not within the budget.
    """

    steps: Array
    reached: int
    median: float
    low: float
    high: float

    @property
    def runs(self) -> int:
        return int(self.steps.size)

    @property
    def flag(self) -> bool:
        """Whether there are too few runs to conclude from the interval."""
        return self.runs < ENOUGH


def performance_profile(scores: Scores, thresholds: Array, confidence: float = 0.95) -> Profile:
    """Run-score distribution (Agarwal et al. 2021, section 4.2): the share of runs that score above a threshold, mean over tasks.

    The band is pointwise: at each threshold by itself, a stratified percentile bootstrap interval.

    Args:
        scores: [runs, tasks] or for each task [runs], normalised. thresholds: [K].
    """
    tasks = by_task(scores)
    above = [(one[:, None] > thresholds).astype(np.float64) for one in tasks]
    share = np.mean([one.mean(0) for one in above], axis=0)
    fewest = min(one.size for one in tasks)
    if fewest < 2:
        nothing = np.full(thresholds.shape, np.nan)
        return Profile(thresholds, share, nothing, nothing, fewest)
    random = np.random.default_rng(SEED)
    drawn = np.mean([draws(len(one), random) @ one / len(one) for one in above], axis=0)
    low, high = interval(drawn, confidence)
    return Profile(thresholds, share, low, high, fewest)


def steps_to(steps: Array, returns: Array, target: float, confidence: float = 0.95) -> StepsTo:
    """Sample efficiency: the step of the first evaluation at or above a return.

    Nothing is interpolated, since what the return was between two evaluations is not known: the figure is exact to one
    interval between evaluations, and never too small by more than noise. A run that never reaches the return is censored: it
    counts as later than every step in the median, which is inf where half of the runs or more are censored.

    Args:
        steps: [evaluations], increasing. returns: [runs, evaluations]. target: e.g. 0.9 of the best known return.
    """
    at = returns >= target
    first = np.where(at.any(1), np.asarray(steps, dtype=np.float64)[at.argmax(1)], np.inf)
    reached, runs = int(at.any(1).sum()), len(first)
    middle = float(np.median(first))
    if runs < 2:
        return StepsTo(first, reached, middle, np.nan, np.nan)
    picks = np.random.default_rng(SEED).integers(runs, size=(RESAMPLES, runs))
    medians, tail = np.median(first[picks], axis=1), (1 - confidence) / 2
    # The next resampled median outwards: between a number and inf there is nothing to interpolate.
    low = float(np.quantile(medians, tail, method="lower"))
    high = float(np.quantile(medians, 1 - tail, method="higher"))
    return StepsTo(first, reached, middle, low, high)
