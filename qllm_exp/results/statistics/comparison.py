"""Two methods side by side: probability of improvement, difference of means, and whether chance explains the difference.

Scores of a method are [runs, tasks], or one array [runs] per task; both methods have the same tasks in the same order, and the
runs of one are independent of those of the other.
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
    by_task,
    draws,
    interval,
    mean,
    resampled,
)

EXACT = 20_000  # relabellings up to which the permutation test goes through all of them
DRAWN = 9_999  # relabellings that it draws otherwise


@dataclass(frozen=True)
class Difference:
    """Mean of one method less that of another, over runs and then over tasks.

    Attributes:
        bootstrap: the difference, with its stratified percentile bootstrap interval.
        welch_low, welch_high: Welch's interval, which holds for few runs too where scores are about normal; nan where a task
            has one run of a method, or no run differs from another.
        p: two-sided permutation test of no difference. p_smallest: the smallest p that so few runs can give.
    """

    bootstrap: Estimate
    welch_low: float
    welch_high: float
    p: float
    p_smallest: float

    @property
    def flag(self) -> bool:
        """Whether a method has too few runs to conclude from the bootstrap interval."""
        return self.bootstrap.flag


def probability_of_improvement(x: Scores, y: Scores, confidence: float = 0.95) -> Estimate:
    """How likely a run of X scores higher than one of Y on a task drawn at random (Agarwal et al., section 4.3).

    On each task it is the Mann-Whitney U statistic over the number of pairs: P(X > Y) + P(X = Y) / 2. The interval resamples the
    runs of both methods within each task.
    """
    pairs = _paired(x, y)
    wins = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in pairs]
    fewest = min(min(one.shape) for one in wins)
    value = float(np.mean([one.mean() for one in wins]))
    if fewest < 2:
        return Estimate(value, np.nan, np.nan, fewest)
    random = np.random.default_rng(SEED)
    drawn = np.zeros(RESAMPLES)
    for one in wins:
        drawn += ((draws(one.shape[0], random) @ one) * draws(one.shape[1], random)).sum(1) / one.size
    low, high = interval(drawn / len(wins), confidence)
    return Estimate(value, float(low), float(high), fewest)


def difference(x: Scores, y: Scores, confidence: float = 0.95) -> Difference:
    """Mean of X less mean of Y with intervals and a permutation test."""
    pairs = _paired(x, y)
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    value = float(mean(ours) - mean(theirs))
    fewest = min(one.size for one in (*ours, *theirs))
    low = high = np.array(np.nan)
    if fewest > 1:
        both = resampled([*ours, *theirs])
        low, high = interval(mean(both[: len(ours)]) - mean(both[len(ours) :]), confidence)
    p, smallest = permutation_test(x, y)
    return Difference(Estimate(value, float(low), float(high), fewest), *welch(x, y, confidence), p, smallest)


def welch(x: Scores, y: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of means with unequal variances (Welch 1947), by Satterthwaite's degrees of freedom.

    For T tasks the difference is the mean over tasks, whose variance is sum_t (s_xt^2 / n_xt + s_yt^2 / n_yt) / T^2. Both ends are
    nan where a task has fewer than two runs of a method, or where all variances are zero.
    """
    pairs = _paired(x, y)
    samples = [one for pair in pairs for one in pair]
    if min(one.size for one in samples) < 2:
        return math.nan, math.nan
    parts = np.array([one.var(ddof=1) / one.size for one in samples]) / len(pairs) ** 2
    variance = parts.sum()
    if not variance > 0:
        return math.nan, math.nan
    freedom = variance**2 / sum(part**2 / (one.size - 1) for part, one in zip(parts, samples, strict=True))
    value = float(mean([a for a, _ in pairs]) - mean([b for _, b in pairs]))
    reach = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    return value - reach, value + reach


def permutation_test(x: Scores, y: Scores) -> tuple[float, float]:
    """Two-sided p of no difference between the methods, and the smallest p that their numbers of runs can give.

    Which method a run belongs to is exchanged within each task; p is the share of relabellings whose difference of means is at
    least as large as the one seen. All relabellings are gone through where there are at most `EXACT`; else `DRAWN` are drawn with
    a fixed seed, and the one seen counts among them (Phipson and Smyth 2010).
    """
    pairs = _paired(x, y)
    seen = abs(sum(float(a.mean() - b.mean()) for a, b in pairs))
    count = math.prod(math.comb(a.size + b.size, a.size) for a, b in pairs)
    exact = count <= EXACT
    if exact:
        sums = np.zeros(1)
        for a, b in pairs:
            sums = np.add.outer(sums, _all_relabellings(a, b)).ravel()
    else:
        random = np.random.default_rng(SEED)
        sums = np.sum([_some_relabellings(a, b, random) for a, b in pairs], axis=0)
    rounding = 1e-9 * max(float(np.abs(one).max()) for pair in pairs for one in pair)
    beyond = int((np.abs(sums) >= seen - rounding).sum())
    # Relabelled the other way round, equal numbers of runs give the same difference with the other sign.
    smallest = (2 if all(a.size == b.size for a, b in pairs) else 1) / count
    return (beyond / count, smallest) if exact else ((beyond + 1) / (DRAWN + 1), max(smallest, 1 / (DRAWN + 1)))


def _paired(x: Scores, y: Scores) -> Sequence[tuple[Array, Array]]:
    ours, theirs = by_task(x), by_task(y)
    if len(ours) != len(theirs):
        raise ValueError(f"The methods have {len(ours)} and {len(theirs)} tasks: give the tasks that both have.")
    return list(zip(ours, theirs, strict=True))


def _all_relabellings(a: Array, b: Array) -> Array:
    """Difference of means for every choice of which runs are X's."""
    pool = np.concatenate([a, b])
    chosen = np.array(list(itertools.combinations(range(pool.size), a.size)))
    sums = pool[chosen].sum(1)
    differences: Array = sums / a.size - (pool.sum() - sums) / b.size
    return differences


def _some_relabellings(a: Array, b: Array, random: np.random.Generator) -> Array:
    pool = random.permuted(np.tile(np.concatenate([a, b]), (DRAWN, 1)), axis=1)
    differences: Array = pool[:, : a.size].mean(1) - pool[:, a.size :].mean(1)
    return differences
