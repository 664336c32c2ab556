"""Returns of different tasks on one scale: 0 at a task's lower bound, 1 at its upper, with where the bounds come from."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics.aggregate import Array

Settings = Mapping[str, Any]

_CLIMBING, _PENALTY_BEST = (-30.0, 11.0), 10.0  # payoffs of envs/matrix.py: lowest and highest; highest
_NOT_OF_THE_RETURN = ("env.num_envs",)  # settings of an environment that do not change what a return means


@dataclass(frozen=True)
class Bounds:
    """Returns that become 0 and 1, and where they come from, in words."""

    low: float
    high: float
    source: str

    def __call__(self, returns: Array) -> Array:
        """(return - low) / (high - low); not clipped, so that a score beyond the bounds is seen."""
        return (np.asarray(returns, dtype=np.float64) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Normalised:
    """Bounds for each record, by its path, and what a table has to say about them.

    Attributes:
        left_out: records of tasks on which all returns are equal and no bounds are known: they have no scale.
        notes: a sentence per task, the same for equal sets of records.
    """

    bounds: Mapping[str, Bounds]
    left_out: tuple[Record, ...]
    notes: tuple[str, ...]

    def of(self, record: Record) -> Bounds | None:
        """The record's bounds; None where it is left out."""
        return self.bounds.get(str(record.path))


def normalise(records: Sequence[Record]) -> Normalised:
    """Bounds of the records: those known of a task, else the lowest and the highest return at hand.

    Bounds from the data are over all evaluations and absolute metrics of all methods, the untrained policies' included, of the
    runs of a task whose returns mean the same (equal settings of the environment). Such scores lie between 0 and 1, tell how the
    methods at hand stand to each other, and compare with no other set of runs; this is said in `notes`.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for one in records:
        unit = {k: v for k, v in one.settings.items() if k.startswith("env.") and k not in _NOT_OF_THE_RETURN}
        groups[one.task, repr(sorted(unit.items()))].append(one)
    bounds: dict[str, Bounds] = {}
    left_out: list[Record] = []
    notes: list[str] = []
    for (task, _), group in sorted(groups.items()):
        found = known_bounds(task, group[0].settings) or _from_the_data(group)
        if found is None:
            left_out += group
            notes.append(f"{task}: left out of normalised figures: no bounds are known, and all returns are equal.")
            continue
        bounds |= dict.fromkeys((str(one.path) for one in group), found)
        notes.append(f"{task}: 0 is a return of {found.low:.6g}, 1 is {found.high:.6g} ({found.source}).")
    return Normalised(bounds, tuple(left_out), tuple(notes))


def known_bounds(task: str, settings: Settings) -> Bounds | None:
    """What is known of the return of a task, under the settings of its environment; None where nothing is."""
    env, _, name = task.partition("/")
    known = _KNOWN.get(env)
    return known(name, settings) if known is not None else None


def _lbf(task: str, settings: Settings) -> Bounds | None:
    """No food and all food; the rewards of the players add up to 1."""
    players = re.match(r"\d+x\d+-(\d+)p-", task)
    if players is None:
        return None
    mean = settings.get("env.reward") == "mean"
    return Bounds(0.0, 1 / int(players[1]) if mean else 1.0, "no food and all of it loaded")


def _matrix(task: str, settings: Settings) -> Bounds | None:
    """The lowest and the highest payoff at every repetition."""
    penalty = re.fullmatch(r"penalty-(\d+)", task)
    if task != "climbing" and penalty is None:
        return None
    low, high = _CLIMBING if penalty is None else (0.0 - float(penalty[1]), _PENALTY_BEST)
    times = settings.get("env.episode_limit", math.nan) * (2 if settings.get("env.reward") == "sum" else 1)
    return Bounds(low * times, high * times, "the lowest and the highest payoff at every step") if times > 0 else None


def _grf(task: str, settings: Settings) -> Bounds | None:
    """No goal and one goal of ours, which ends an academy episode and pays out the checkpoints that were not collected.

    With reward=sum the return depends on the number of agents, which the settings do not hold. A goal of the opponents is
    below the lower bound.
    """
    if settings.get("env.reward") != "mean" or not task.startswith("academy_"):
        return None
    checkpoints = "checkpoints" in settings.get("env.rewards", "")
    return Bounds(0.0, 2.0 if checkpoints else 1.0, "nothing and a goal" + ", checkpoints included" * checkpoints)


_KNOWN: dict[str, Callable[[str, Settings], Bounds | None]] = {"lbf": _lbf, "matrix": _matrix, "grf": _grf}


def _from_the_data(records: Sequence[Record]) -> Bounds | None:
    values = np.fromiter(_returns(records), dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None
    source = f"the lowest and the highest return of the {len(records)} runs here, over all methods; no bounds are known"
    return Bounds(float(values.min()), float(values.max()), source)


def _returns(records: Iterable[Record]) -> Iterable[float]:
    for one in records:
        yield from one.returns
        yield from (float(one.result[key]) for key in ("final_return", "absolute_return") if key in one.result)
