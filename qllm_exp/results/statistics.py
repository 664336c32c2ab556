"""Means and intervals over independent runs (seeds)."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 2000


def bootstrap_mean(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the mean over runs (Efron 1979; Agarwal et al. 2021 use it over seeds).

    With few runs it is too narrow: on one task a 95 % interval covers about 75 % with 3 seeds and 88 % with 5.

    Args:
        values: [runs, ...] one score per run (and evaluation). confidence: e.g. 0.95.

    Returns:
        low and high, each [...]. NaN with a single run.
    """
    runs = values.shape[0]
    if runs < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    picks = np.random.default_rng(0).integers(runs, size=(RESAMPLES, runs))
    means = values[picks].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
