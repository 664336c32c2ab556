"""Comparisons of two methods: probability of improvement, difference of means, and significance of the difference.

Scores of a method are [runs, tasks], or one array [runs] per task. Both methods have the same tasks in the same order, and the
runs of one are independent of the runs of the other.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from qllm_exp.results.statistics.aggregate import (
    RESAMPLES,
    SEED,
    Array,
    Estimate,
    Scores,
    bootstrap_counts,
    mean,
    percentile_interval,
    resample,
    split_by_task,
)

MAX_EXACT_RELABELLINGS = 20_000  # up to here the permutation test enumerates all relabellings
SAMPLED_RELABELLINGS = 9_999  # otherwise it draws this many


@dataclass(frozen=True)
class Difference:
    """Mean of one method minus the mean of another, over runs and then over tasks.

    Attributes:
        bootstrap: the difference, with its stratified percentile bootstrap interval.
        welch_low: lower end of Welch's interval, which also holds for few runs if scores are approximately normal; nan if a
            method has one run on a task, or if no two runs differ.
        welch_high: upper end of Welch's interval; nan as above.
        p: two-sided p-value of the permutation test of no difference.
        p_smallest: smallest p-value that is possible with these numbers of runs.
    """

    bootstrap: Estimate
    welch_low: float
    welch_high: float
    p: float
    p_smallest: float

    @property
    def too_few_runs(self) -> bool:
        """Whether a method has too few runs to draw conclusions from the bootstrap interval."""
        return self.bootstrap.too_few_runs


def probability_of_improvement(x: Scores, y: Scores, confidence: float = 0.95) -> Estimate:
    """Return the probability that a run of X scores higher than a run of Y on a task drawn at random.

    On each task it is the Mann-Whitney U statistic divided by the number of pairs: P(X > Y) + P(X = Y) / 2. The interval
    resamples the runs of both methods within each task.

    Args:
        x: scores of method X.
        y: scores of method Y.
        confidence: coverage of the interval.

    Source: Agarwal et al. 2021, section 4.3.
    """
    pairs = _pair_tasks(x, y)
    wins = [(x_task[:, None] > y_task) + 0.5 * (x_task[:, None] == y_task) for x_task, y_task in pairs]
    fewest = min(min(task_wins.shape) for task_wins in wins)
    value = float(np.mean([task_wins.mean() for task_wins in wins]))
    if fewest < 2:
        return Estimate(value, np.nan, np.nan, fewest)
    random = np.random.default_rng(SEED)
    resampled = np.zeros(RESAMPLES)
    for task_wins in wins:
        x_runs, y_runs = task_wins.shape
        x_counts = bootstrap_counts(x_runs, random)
        y_counts = bootstrap_counts(y_runs, random)
        resampled += ((x_counts @ task_wins) * y_counts).sum(1) / task_wins.size
    low, high = percentile_interval(resampled / len(wins), confidence)
    return Estimate(value, float(low), float(high), fewest)


def difference(x: Scores, y: Scores, confidence: float = 0.95) -> Difference:
    """Return the mean of X minus the mean of Y, with intervals and a permutation test.

    Args:
        x: scores of method X.
        y: scores of method Y.
        confidence: coverage of the intervals.
    """
    pairs = _pair_tasks(x, y)
    x_tasks = [x_task for x_task, _ in pairs]
    y_tasks = [y_task for _, y_task in pairs]
    value = float(mean(x_tasks) - mean(y_tasks))
    fewest = min(task.size for task in (*x_tasks, *y_tasks))
    low = high = np.array(np.nan)
    if fewest > 1:
        resampled = resample([*x_tasks, *y_tasks])
        differences = mean(resampled[: len(x_tasks)]) - mean(resampled[len(x_tasks) :])
        low, high = percentile_interval(differences, confidence)
    welch_low, welch_high = welch_interval(x, y, confidence)
    p, p_smallest = permutation_test(x, y)
    return Difference(Estimate(value, float(low), float(high), fewest), welch_low, welch_high, p, p_smallest)


def welch_interval(x: Scores, y: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the difference of means with unequal variances (Welch 1947).

    For T tasks the difference is the mean over tasks, whose variance is sum_t (s_xt^2 / n_xt + s_yt^2 / n_yt) / T^2. The degrees
    of freedom are Satterthwaite's.

    Args:
        x: scores of method X.
        y: scores of method Y.
        confidence: coverage of the interval.

    Returns:
        Low and high; both nan if a method has fewer than two runs on a task, or if all variances are zero.
    """
    pairs = _pair_tasks(x, y)
    samples = [sample for pair in pairs for sample in pair]
    if min(sample.size for sample in samples) < 2:
        return math.nan, math.nan
    terms = np.array([sample.var(ddof=1) / sample.size for sample in samples]) / len(pairs) ** 2
    variance = terms.sum()
    if not variance > 0:
        return math.nan, math.nan
    degrees_of_freedom = variance**2 / sum(
        term**2 / (sample.size - 1) for term, sample in zip(terms, samples, strict=True)
    )
    value = float(mean([x_task for x_task, _ in pairs]) - mean([y_task for _, y_task in pairs]))
    half_width = float(stdtrit(degrees_of_freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    return value - half_width, value + half_width


def permutation_test(x: Scores, y: Scores) -> tuple[float, float]:
    """Return the two-sided p-value of no difference between two methods, and the smallest p-value that is possible.

    The method labels of runs are permuted within each task. p is the fraction of relabellings whose difference of means is at
    least as large as the observed one. All relabellings are enumerated if there are at most `MAX_EXACT_RELABELLINGS`. Otherwise
    `SAMPLED_RELABELLINGS` are drawn with a fixed seed, and the observed labelling counts among them (Phipson and Smyth 2010).

    Args:
        x: scores of method X.
        y: scores of method Y.
    """
    pairs = _pair_tasks(x, y)
    observed = abs(sum(float(x_task.mean() - y_task.mean()) for x_task, y_task in pairs))
    relabellings = math.prod(math.comb(x_task.size + y_task.size, x_task.size) for x_task, y_task in pairs)
    exact = relabellings <= MAX_EXACT_RELABELLINGS
    if exact:
        sums = np.zeros(1)
        for x_task, y_task in pairs:
            sums = np.add.outer(sums, _all_relabelled_differences(x_task, y_task)).ravel()
    else:
        random = np.random.default_rng(SEED)
        sums = np.sum([_sampled_differences(x_task, y_task, random) for x_task, y_task in pairs], axis=0)
    tolerance = 1e-9 * max(float(np.abs(task).max()) for pair in pairs for task in pair)
    at_least_observed = int((np.abs(sums) >= observed - tolerance).sum())
    # With equal numbers of runs, swapping all labels gives the same difference with the opposite sign.
    smallest = (2 if all(x_task.size == y_task.size for x_task, y_task in pairs) else 1) / relabellings
    if exact:
        return at_least_observed / relabellings, smallest
    return (at_least_observed + 1) / (SAMPLED_RELABELLINGS + 1), max(smallest, 1 / (SAMPLED_RELABELLINGS + 1))


def _pair_tasks(x: Scores, y: Scores) -> Sequence[tuple[Array, Array]]:
    x_tasks, y_tasks = split_by_task(x), split_by_task(y)
    if len(x_tasks) != len(y_tasks):
        raise ValueError(f"The methods have {len(x_tasks)} and {len(y_tasks)} tasks. Give the tasks that both have.")
    return list(zip(x_tasks, y_tasks, strict=True))


def _all_relabelled_differences(x: Array, y: Array) -> Array:
    """Return the difference of means for every choice of which runs belong to X."""
    pool = np.concatenate([x, y])
    x_indices = np.array(list(itertools.combinations(range(pool.size), x.size)))
    x_sums = pool[x_indices].sum(1)
    differences: Array = x_sums / x.size - (pool.sum() - x_sums) / y.size
    return differences


def _sampled_differences(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Return the differences of means for `SAMPLED_RELABELLINGS` random choices of which runs belong to X."""
    pool = random.permuted(np.tile(np.concatenate([x, y]), (SAMPLED_RELABELLINGS, 1)), axis=1)
    differences: Array = pool[:, : x.size].mean(1) - pool[:, x.size :].mean(1)
    return differences
