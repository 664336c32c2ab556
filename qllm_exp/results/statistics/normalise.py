"""Normalises returns of different tasks to one scale: 0 at a task's lower bound, 1 at its upper bound."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllm_exp.results.records.metric_names import Metric, metric_named
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.aggregate import Array

Settings = Mapping[str, Any]

_CLIMBING_BOUNDS = (-30.0, 11.0)  # lowest and highest payoff in envs/matrix.py
_PENALTY_HIGHEST = 10.0  # highest payoff in envs/matrix.py
_RETURN_INDEPENDENT_KEYS = ("env.num_envs",)  # settings of an environment that do not change what a return means


@dataclass(frozen=True)
class Bounds:
    """Bounds of a return.

    Attributes:
        low: the return that becomes 0.
        high: the return that becomes 1.
        source: where the bounds come from, in words.
    """

    low: float
    high: float
    source: str

    def __call__(self, returns: Array) -> Array:
        """Return (return - low) / (high - low). It is not clipped, so scores beyond the bounds stay visible."""
        return (np.asarray(returns, dtype=np.float64) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Normalisation:
    """Bounds for each record, and the footnotes about them.

    Attributes:
        bounds: by the path of the record.
        left_out: records of tasks without a scale: no bounds are known, and all returns are equal.
        notes: one sentence per task.
    """

    bounds: Mapping[str, Bounds]
    left_out: tuple[Record, ...]
    notes: tuple[str, ...]

    def bounds_of(self, record: Record) -> Bounds | None:
        """Return the bounds of a record; None if it is left out."""
        return self.bounds.get(str(record.path))


def normalise(records: Sequence[Record], metric: str = "final") -> Normalisation:
    """Return the bounds of the records: the known bounds of a task, else the lowest and highest return in the data.

    Bounds from the data are taken over all evaluations and absolute metrics of all methods, including those of the untrained
    policies, of the runs of a task whose returns mean the same (equal settings of the environment). The resulting scores lie
    between 0 and 1. They rank the methods at hand but cannot be compared with another set of runs, as `notes` says.

    Args:
        records: finished runs.
        metric: what is scored. Win rates lie between 0 and 1 on every task, and stay as they are. Of another metric that the
            environments report, no bounds are known.
    """
    named = metric_named(metric)
    if named.is_share:
        return Normalisation({str(record.path): Bounds(0.0, 1.0, "a win rate") for record in records}, (), ())
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        env_settings = {
            key: value
            for key, value in record.settings.items()
            if key.startswith("env.") and key not in _RETURN_INDEPENDENT_KEYS
        }
        groups[record.task, repr(sorted(env_settings.items()))].append(record)
    bounds_by_path: dict[str, Bounds] = {}
    left_out: list[Record] = []
    notes: list[str] = []
    for (task, _), group in sorted(groups.items()):
        known = None if named.episode_metric else known_bounds(task, group[0].settings)
        bounds = known or _bounds_from_data(group, named)
        if bounds is None:
            left_out += group
            notes.append(
                f"{task}: left out of normalised scores: no bounds are known, and all {named.noun}s are equal."
            )
            continue
        bounds_by_path |= dict.fromkeys((str(record.path) for record in group), bounds)
        notes.append(f"{task}: 0 is a {named.noun} of {bounds.low:.6g}, 1 is {bounds.high:.6g} ({bounds.source}).")
    return Normalisation(bounds_by_path, tuple(left_out), tuple(notes))


def known_bounds(task: str, settings: Settings) -> Bounds | None:
    """Return the known bounds of a task's return; None if unknown.

    Args:
        task: 'ENV/TASK'.
        settings: settings of a run on the task.
    """
    env, _, name = task.partition("/")
    bounds_function = _KNOWN_BOUNDS.get(env)
    return bounds_function(name, settings) if bounds_function is not None else None


def _lbf(task: str, settings: Settings) -> Bounds | None:
    """No food and all food: the rewards of the players sum to 1."""
    players = re.match(r"\d+x\d+-(\d+)p-", task)
    if players is None:
        return None
    high = 1 / int(players[1]) if settings.get("env.reward") == "mean" else 1.0
    return Bounds(0.0, high, "no food and all food loaded")


def _matrix(task: str, settings: Settings) -> Bounds | None:
    """The lowest and the highest payoff at every step."""
    penalty = re.fullmatch(r"penalty-(\d+)", task)
    if penalty is not None:
        low, high = 0.0 - float(penalty[1]), _PENALTY_HIGHEST
    elif task == "climbing":
        low, high = _CLIMBING_BOUNDS
    else:
        return None
    factor = settings.get("env.episode_limit", math.nan)
    if settings.get("env.reward") == "sum":
        factor *= 2
    return (
        Bounds(low * factor, high * factor, "the lowest and the highest payoff at every step") if factor > 0 else None
    )


def _grf(task: str, settings: Settings) -> Bounds | None:
    """No goal and one goal of the team, which ends an academy episode and pays out all uncollected checkpoints.

    With reward=sum the return depends on the number of agents, which the settings do not contain. A goal of the opponents is
    below the lower bound.
    """
    if settings.get("env.reward") != "mean" or not task.startswith("academy_"):
        return None
    if "checkpoints" in settings.get("env.rewards", ""):
        return Bounds(0.0, 2.0, "no goal and one goal, checkpoints included")
    return Bounds(0.0, 1.0, "no goal and one goal")


def _pursuit(task: str, settings: Settings) -> Bounds | None:
    """No prey, and as many as pairs of hunters can capture. Penalties may be below the lower bound."""
    match = re.match(r"\d+x\d+-(\d+)h-(\d+)p", task)
    if match is None:
        return None
    hunters, prey = int(match[1]), int(match[2])
    high = 10.0 * min(hunters // 2, prey)
    if settings.get("env.reward") == "mean":
        high /= hunters
    return Bounds(0.0, high, "no prey, and a prey for every two hunters")


def _smax(task: str, settings: Settings) -> Bounds | None:
    """No health taken and a battle won. With reward=sum the return depends on the number of allies."""
    if settings.get("env.reward") != "mean":
        return None
    return Bounds(0.0, 2.0, "no health taken from the enemy and a battle won")


_KNOWN_BOUNDS: dict[str, Callable[[str, Settings], Bounds | None]] = {
    "lbf": _lbf,
    "pursuit": _pursuit,
    "matrix": _matrix,
    "grf": _grf,
    "smax": _smax,
}


def _bounds_from_data(records: Sequence[Record], metric: Metric) -> Bounds | None:
    values = np.fromiter(_all_values(records, metric.episode_metric), dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None
    source = (
        f"the lowest and the highest {metric.noun} of these {len(records)} runs, over all methods; no bounds are known"
    )
    return Bounds(float(values.min()), float(values.max()), source)


def _all_values(records: Iterable[Record], episode_metric: str) -> Iterable[float]:
    for record in records:
        if episode_metric:
            yield from record.series(episode_metric)
            continue
        yield from record.returns
        yield from (float(record.result[key]) for key in ("final_return", "absolute_return") if key in record.result)
