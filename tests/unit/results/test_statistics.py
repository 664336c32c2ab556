"""Statistics against their published definitions, written out with loops and without arrays."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from qllm_exp.errors import UserError
from qllm_exp.results.statistics.aggregate import (
    RESAMPLES,
    SEED,
    bootstrap_mean,
    estimate,
    iqm,
    mean,
    median,
    optimality_gap,
    percentile_interval,
    resample,
    split_by_task,
)
from qllm_exp.results.statistics.comparison import (
    difference,
    permutation_test,
    probability_of_improvement,
    welch_interval,
)
from qllm_exp.results.statistics.profiles import performance_profile, steps_to

Tasks = list[list[float]]  # for each task the scores of its runs


def drawn(*runs: int, seed: int = 0, ties: bool = False) -> Tasks:
    """Return scores for tasks with these numbers of runs; with `ties`, from only four values."""
    source = random.Random(seed)
    return [[source.choice([0.0, 0.25, 0.5, 1.0]) if ties else source.gauss(0.4, 0.5) for _ in range(n)] for n in runs]


def arrays(tasks: Tasks) -> list[np.ndarray]:
    return [np.array(task) for task in tasks]


def slow_mean(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def slow_iqm(tasks: Tasks) -> float:
    """Split every score into equal parts so that all tasks have the same weight, and average the middle half of all parts."""
    per_task = 4 * math.lcm(*(len(task) for task in tasks))
    parts = sorted(value for task in tasks for value in task for _ in range(per_task // len(task)))
    quarter = len(parts) // 4
    return slow_mean(parts[quarter:-quarter])


def slow_quantile(values: Sequence[float], share: float) -> float:
    """Between order statistics, linearly (Hyndman and Fan 1996, type 7)."""
    ordered, at = sorted(values), share * (len(values) - 1)
    below = math.floor(at)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


SHAPES = [(4, 4), (5,), (3, 3, 3), (10, 10), (7, 7), (3, 5, 10), (2, 9)]


@pytest.mark.parametrize("runs", SHAPES)
@pytest.mark.parametrize("ties", [False, True])
def test_aggregates_are_those_of_agarwal_et_al(runs: tuple[int, ...], ties: bool) -> None:
    tasks = drawn(*runs, ties=ties)
    means = sorted(slow_mean(task) for task in tasks)
    middle = (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2
    gaps = [slow_mean([max(0.0, 1.0 - score) for score in task]) for task in tasks]
    assert mean(arrays(tasks)) == pytest.approx(slow_mean(means))
    assert median(arrays(tasks)) == pytest.approx(middle)
    assert iqm(arrays(tasks)) == pytest.approx(slow_iqm(tasks))
    assert optimality_gap(arrays(tasks)) == pytest.approx(slow_mean(gaps))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (10, 2), (20, 5)])
def test_iqm_of_a_multiple_of_four_scores_is_the_trimmed_mean(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).normal(size=shape)
    assert iqm(split_by_task(scores)) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))


def test_iqm_of_five_scores_counts_those_at_the_edges_in_part() -> None:
    assert iqm([np.array([0.0, 1.0, 2.0, 3.0, 400.0])]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 3) / 2.5)


def test_a_task_counts_the_same_however_many_runs_it_has() -> None:
    few, many = np.zeros(3), np.ones(30)
    assert mean([few, many]) == pytest.approx(0.5) and iqm([few, many]) == pytest.approx(0.5)


def test_an_array_is_one_column_per_task() -> None:
    scores = np.arange(6.0).reshape(3, 2)
    assert [list(task) for task in split_by_task(scores)] == [[0, 2, 4], [1, 3, 5]]
    assert estimate(scores, mean) == estimate([scores[:, 0], scores[:, 1]], mean)


def test_the_bootstrap_draws_runs_within_their_task() -> None:
    tasks = [np.array([0.0, 1.0, 2.0]), np.array([10.0, 11.0]), np.array([20.0])]
    for task, samples in zip(tasks, resample(tasks), strict=True):
        assert samples.shape == (RESAMPLES, task.size) and set(samples.ravel()) == set(task)
    pairs = {tuple(row) for row in resample(tasks)[1]}
    assert pairs == {(10.0, 10.0), (10.0, 11.0), (11.0, 10.0), (11.0, 11.0)}  # with replacement


@pytest.mark.parametrize("statistic", [mean, median, iqm, optimality_gap])
def test_an_interval_is_between_the_percentiles_of_the_statistic_of_the_resamples(statistic) -> None:
    tasks = arrays(drawn(5, 4, 6))
    draws = resample(tasks)
    values = [float(statistic([task[index] for task in draws])) for index in range(RESAMPLES)]
    result = estimate(tasks, statistic)
    assert result.low == pytest.approx(slow_quantile(values, 0.025))
    assert result.high == pytest.approx(slow_quantile(values, 0.975))
    assert result.value == pytest.approx(float(statistic(tasks))) and result.runs == 4
    assert result == estimate(tasks, statistic)  # the same seed every time


def test_the_resampled_mean_spreads_as_theory_says() -> None:
    scores = np.random.default_rng(3).normal(size=50)
    deviation = resample([scores], 20_000)[0].mean(1).std()
    assert deviation == pytest.approx(scores.std() / math.sqrt(50), rel=0.03)


def test_bootstrap_mean_is_pointwise() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    picks = np.random.default_rng(SEED).integers(5, size=(RESAMPLES, 5))
    for column in range(3):
        means = [slow_mean([values[run, column] for run in row]) for row in picks]
        low, high = bootstrap_mean(values)
        assert low[column] == pytest.approx(slow_quantile(means, 0.025))
        assert high[column] == pytest.approx(slow_quantile(means, 0.975))


def test_a_single_run_has_no_interval_and_few_runs_are_marked() -> None:
    assert np.isnan(bootstrap_mean(np.ones((1, 2)))).all()
    alone = estimate([np.array([1.0]), np.array([1.0, 2.0])], mean)
    assert math.isnan(alone.low) and math.isnan(alone.high) and alone.value == 1.25 and alone.too_few_runs
    assert estimate(np.ones((4, 2))).too_few_runs and not estimate(np.ones((5, 2))).too_few_runs


@pytest.mark.parametrize("wrong", [[np.array([])], [np.array([1.0, np.nan])], [np.array([1.0]), np.array([np.inf])]])
def test_scores_that_are_not_finite_are_refused(wrong: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="Task"):
        estimate(wrong)


# Two methods


def slow_improvement(x: Tasks, y: Tasks) -> float:
    shares = []
    for x_scores, y_scores in zip(x, y, strict=True):
        points = 0.0
        for a, b in itertools.product(x_scores, y_scores):
            if a > b:
                points += 1.0
            elif a == b:
                points += 0.5
        shares.append(points / (len(x_scores) * len(y_scores)))
    return slow_mean(shares)


@pytest.mark.parametrize("ties", [False, True])
def test_probability_of_improvement_counts_pairs(ties: bool) -> None:
    x, y = drawn(5, 3, 8, seed=1, ties=ties), drawn(4, 3, 10, seed=2, ties=ties)
    result = probability_of_improvement(arrays(x), arrays(y))
    assert result.value == pytest.approx(slow_improvement(x, y)) and result.runs == 3
    u = stats.mannwhitneyu(x[0], y[0]).statistic
    assert probability_of_improvement(arrays(x[:1]), arrays(y[:1])).value == pytest.approx(u / 20)
    reverse = probability_of_improvement(arrays(y), arrays(x))
    assert reverse.value == pytest.approx(1 - result.value)


def test_the_interval_of_improvement_resamples_both_methods() -> None:
    x, y = drawn(6, 5, seed=1, ties=True), drawn(4, 7, seed=2, ties=True)
    source = random.Random(0)
    values = []
    for _ in range(3000):
        x_sample = [[source.choice(task) for _ in task] for task in x]
        y_sample = [[source.choice(task) for _ in task] for task in y]
        values.append(slow_improvement(x_sample, y_sample))
    result = probability_of_improvement(arrays(x), arrays(y))
    assert result.low == pytest.approx(slow_quantile(values, 0.025), abs=0.03)
    assert result.high == pytest.approx(slow_quantile(values, 0.975), abs=0.03)


def test_methods_without_overlap_differ_with_certainty() -> None:
    better, worse = np.full((5, 2), 2.0), np.full((5, 2), 1.0)
    assert vars(probability_of_improvement(better, worse)) == {"value": 1.0, "low": 1.0, "high": 1.0, "runs": 5}
    result = difference(better, worse)
    assert (result.bootstrap.value, result.bootstrap.low, result.bootstrap.high) == (1.0, 1.0, 1.0)
    assert math.isnan(result.welch_low) and not result.too_few_runs


def test_a_difference_resamples_both_methods_within_their_tasks() -> None:
    x, y = drawn(5, 6, seed=1), drawn(4, 8, seed=2)
    draws = resample(arrays([*x, *y]))
    values = []
    for at in range(RESAMPLES):
        means = [slow_mean(list(task[at])) for task in draws]
        values.append(slow_mean(means[:2]) - slow_mean(means[2:]))
    result = difference(arrays(x), arrays(y)).bootstrap
    assert result.value == pytest.approx(slow_mean([slow_mean(a) - slow_mean(b) for a, b in zip(x, y, strict=True)]))
    assert result.low == pytest.approx(slow_quantile(values, 0.025))
    assert result.high == pytest.approx(slow_quantile(values, 0.975))
    assert result.runs == 4


def test_welch_on_one_task_is_that_of_scipy() -> None:
    x, y = drawn(5, seed=1), drawn(9, seed=2)
    expected = stats.ttest_ind(x[0], y[0], equal_var=False).confidence_interval(0.95)
    assert welch_interval(arrays(x), arrays(y)) == pytest.approx((expected.low, expected.high))


def test_welch_over_tasks_covers_the_truth_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        x = [source.normal(1, 1, 3), source.normal(5, 3, 4)]
        y = [source.normal(0, 2, 5), source.normal(5, 1, 3)]
        low, high = welch_interval(x, y)
        inside += low <= 0.5 <= high
    assert 0.91 <= inside / 400 <= 0.99


def slow_permutation(x: Tasks, y: Tasks) -> tuple[float, int]:
    """p and the number of relabellings, each of them made as a set of positions and its complement."""
    seen = abs(sum(slow_mean(a) - slow_mean(b) for a, b in zip(x, y, strict=True)))
    choices = []
    for a, b in zip(x, y, strict=True):
        pool, task = a + b, []
        for x_indices in itertools.combinations(range(len(pool)), len(a)):
            y_indices = [index for index in range(len(pool)) if index not in x_indices]
            x_mean = slow_mean([pool[index] for index in x_indices])
            y_mean = slow_mean([pool[index] for index in y_indices])
            task.append(x_mean - y_mean)
        choices.append(task)
    totals = [abs(sum(combination)) for combination in itertools.product(*choices)]
    return sum(total >= seen - 1e-12 for total in totals) / len(totals), len(totals)


@pytest.mark.parametrize("runs", [((5,), (5,)), ((3,), (6,)), ((3, 4), (3, 2)), ((1, 1), (2, 2))])
@pytest.mark.parametrize("ties", [False, True])
def test_small_permutation_tests_are_exact(runs, ties: bool) -> None:
    x, y = drawn(*runs[0], seed=1, ties=ties), drawn(*runs[1], seed=2, ties=ties)
    p, count = slow_permutation(x, y)
    assert permutation_test(arrays(x), arrays(y))[0] == pytest.approx(p)
    apart = [[value + 100 for value in task] for task in x]
    p, smallest = permutation_test(arrays(apart), arrays(y))
    assert p == smallest == pytest.approx((2 if runs[0] == runs[1] else 1) / count)


def test_three_runs_a_method_cannot_be_significant() -> None:
    assert permutation_test([np.array([9.0, 9.5, 9.9])], [np.array([0.0, 0.1, 0.2])]) == (0.1, 0.1)


def test_large_permutation_tests_draw_and_agree_with_scipy() -> None:
    x, y = np.random.default_rng(0).normal(0.0, 1, 12), np.random.default_rng(1).normal(0.7, 1, 12)
    p, _ = permutation_test([x], [y])
    expected = stats.permutation_test(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), vectorized=True, n_resamples=20_000, rng=2
    ).pvalue
    assert p == pytest.approx(expected, abs=0.015)
    assert permutation_test([x + 100], [y])[0] == 1 / 10_000  # the observed labelling counts among the sampled ones


def test_different_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="2 and 1 tasks"):
        difference(np.ones((3, 2)), np.ones((3, 1)))


# Distributions


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    tasks, thresholds = drawn(5, 3, 8, ties=True), [-1.0, 0.0, 0.25, 0.4, 0.5, 1.0]
    result = performance_profile(arrays(tasks), np.array(thresholds))
    for at, threshold in enumerate(thresholds):
        shares = [sum(score > threshold for score in task) / len(task) for task in tasks]
        assert result.share[at] == pytest.approx(slow_mean(shares))
    assert (result.low <= result.share).all() and (result.share <= result.high).all()
    assert result.runs == 3 and result.too_few_runs


def test_the_band_of_a_profile_is_a_stratified_bootstrap() -> None:
    tasks = drawn(6, 5, ties=True)
    source = random.Random(0)
    values = []
    for _ in range(3000):
        sample = [[source.choice(task) for _ in task] for task in tasks]
        values.append(slow_mean([sum(score > 0.3 for score in task) / len(task) for task in sample]))
    result = performance_profile(arrays(tasks), np.array([0.3]))
    assert result.low[0] == pytest.approx(slow_quantile(values, 0.025), abs=0.03)
    assert result.high[0] == pytest.approx(slow_quantile(values, 0.975), abs=0.03)


def test_steps_to_a_return_are_those_of_the_first_evaluation_at_or_above_it() -> None:
    steps = np.array([0, 10, 20, 30])
    returns = np.array([[0.0, 0.5, 0.4, 0.9], [0.0, 0.1, 0.2, 0.3], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.0]])
    result = steps_to(steps, returns, 0.5)
    assert result.steps.tolist() == [10, math.inf, 0, 20] and (result.reached, result.runs) == (3, 4)
    assert result.median == 15 and result.low == 0 and result.high == math.inf and result.too_few_runs
    nobody = steps_to(steps, returns, 2.0)
    assert nobody.reached == 0 and (nobody.median, nobody.low, nobody.high) == (math.inf, math.inf, math.inf)
    assert math.isnan(steps_to(steps, returns[:1], 0.5).low)


def test_an_interval_is_taken_over_the_first_axis() -> None:
    low, high = percentile_interval(np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]), confidence=1.0)
    assert low.tolist() == [0, 10] and high.tolist() == [2, 12]
