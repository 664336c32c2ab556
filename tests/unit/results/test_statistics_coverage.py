"""Coverage of a 95 % percentile bootstrap interval, by simulation: the table in `statistics.aggregate`.

Every experiment draws normal scores afresh; the true mean and, by symmetry, the true interquartile mean are 0.
"""

import numpy as np
import pytest

from qllm_exp.results.statistics.aggregate import bootstrap_mean, estimate

pytestmark = pytest.mark.slow

EXPERIMENTS = 4000


def mean_coverage(runs: int, source: np.random.Generator) -> float:
    low, high = bootstrap_mean(source.normal(size=(runs, EXPERIMENTS)))
    return float(((low <= 0) & (high >= 0)).mean())


def iqm_coverage(runs: int, tasks: int, experiments: int, source: np.random.Generator) -> float:
    scores = source.normal(size=(experiments, runs, tasks))
    estimates = [estimate(experiment_scores) for experiment_scores in scores]
    return sum(result.low <= 0 <= result.high for result in estimates) / experiments


@pytest.mark.parametrize(
    ("runs", "least", "most"), [(3, 0.70, 0.80), (5, 0.80, 0.88), (10, 0.87, 0.93), (20, 0.90, 0.96)]
)
def test_the_interval_of_a_mean_is_too_narrow_for_few_runs(runs: int, least: float, most: float) -> None:
    assert least <= mean_coverage(runs, np.random.default_rng(runs)) <= most


@pytest.mark.parametrize(("runs", "least", "most"), [(3, 0.76, 0.90), (5, 0.82, 0.94), (10, 0.86, 0.98)])
def test_more_tasks_help_the_interval_of_an_iqm(runs: int, least: float, most: float) -> None:
    assert least <= iqm_coverage(runs, 4, 300, np.random.default_rng(runs)) <= most
