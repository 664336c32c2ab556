"""Estimate how long a sweep takes, from finished runs of the same kind, or from speeds that were measured elsewhere."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qllm_exp.config.load import method_name
from qllm_exp.config.schema import RunConfig
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.utils.text import duration

_SAMPLE_SIZE = 5  # finished runs of each kind that are read


class _Speed(NamedTuple):
    """Seconds of one core that an environment takes.

    Attributes:
        start_s: start-up of a run.
        step_s: an environment step: simulation and acting.
        update_s: an update of Q-learning with QMIX from 32 episodes, with 64 hidden units.
    """

    start_s: float
    step_s: float
    update_s: float


# docs/pages/performance.md, "Training" and "Updates of all methods" (means of lbf and mpe): an environment's default task.
SPEEDS_SOURCE = "measured on one core of an AMD EPYC (Zen 4), 2026-11"
_SPEEDS = {
    "lbf": _Speed(2.4, 6.8e-6, 10.1e-3),
    "mpe": _Speed(2.4, 11.4e-6, 7.7e-3),
    "matrix": _Speed(2.4, 2.5e-6, 6.2e-3),  # by its ratio to mpe on another machine
    "grf": _Speed(5.5, 0.97e-3, 44e-3),
}
_UPDATES = {  # time of an update, as a multiple of Q-learning's with QMIX
    **{"vdn": 0.6, "none": 0.7, "iql": 0.7, "tfcaf": 0.9, "qfix": 0.8, "qmix": 1.0, "qtran": 1.0, "qatten": 1.3},
    **{"maddpg": 1.5, "maser": 1.5, "coma": 2.2, "lica": 2.3, "mappo": 3.3, "wqmix": 3.3, "riit": 3.4, "ippo": 3.4},
    **{"qplex": 3.4, "pqn": 5.7},
}


def estimate(runs: Sequence[PreparedRun], progress: Sequence[float], max_parallel: int) -> str:
    """Estimate the time that runs take.

    Two runs are of one kind if they have the same environment, task, algorithm and mixer. The finished runs of a kind tell the
    seconds of start-up, and the seconds per environment step. A kind without finished runs has those of `_SPEEDS`, on CPUs.

    Args:
        runs: runs to start.
        progress: fraction of each run that is done already, from 0 to 1.
        max_parallel: number of runs at a time.

    Returns:
        'about 3 h 20 min, 16 at a time; 48 h 05 min of computing', and for how many runs it is less than measured here; '' if
        nothing is known about any of these kinds.
    """
    if not runs:
        return ""
    folder = runs[0].directory.path.parent
    speeds = _measure(folder, {_kind(run.directory.path.name) for run in runs})
    seconds, elsewhere = [], 0
    for run, fraction in zip(runs, progress, strict=True):
        kind = _kind(run.directory.path.name)
        if kind in speeds:
            start_s, step_s = speeds[kind]
            seconds.append(start_s + step_s * run.config.train.total_steps * (1 - fraction))
        elif run.config.env.name in _SPEEDS and run.config.device == "cpu":
            start_s, training_s = _known(run.config)
            seconds.append(start_s + training_s * (1 - fraction))
            elsewhere += 1
    if not seconds:
        return ""
    total = statistics.fmean(seconds) * len(runs)
    parallel = min(max_parallel, len(runs))
    wall = max(total / max(1, parallel), max(seconds))
    text = f"about {duration(wall)}, {parallel} at a time; {duration(total)} of computing"
    unknown = len(runs) - len(seconds)
    if elsewhere:
        which = "no run of this kind is" if elsewhere == len(runs) else f"{elsewhere} of a kind of which none is"
        text += f"; {which} finished here: a rough estimate, {SPEEDS_SOURCE}"
    if unknown:
        text += f"; {unknown} without finished runs of their kind, taken as average"
    return text


def _known(run: RunConfig) -> tuple[float, float]:
    """Return the seconds of start-up and of training that a run takes by `_SPEEDS` and `_UPDATES`.

    A method that they do not have is taken as Q-learning with QMIX.
    """
    speed, train, evaluation = _SPEEDS[run.env.name], run.train, run.train.evaluation
    algorithm, _, mixer = method_name(run.algorithm.name, run.mixer.name).partition("+")
    ratio = _UPDATES.get(algorithm, _UPDATES.get(mixer, 1.0))
    rollout_episodes = getattr(run.algorithm, "num_envs", None)  # of a method that learns from each rollout once
    episodes = rollout_episodes or train.batch_episodes
    steps_per_update = rollout_episodes * run.env.episode_limit if rollout_episodes else train.steps_per_update
    update_s = speed.update_s * ratio * episodes / 32 * train.hidden / 64
    evaluated = (train.total_steps / evaluation.every + 1) * evaluation.episodes + evaluation.absolute_episodes
    steps = train.total_steps + evaluated * run.env.episode_limit
    return speed.start_s, speed.step_s * steps + update_s * train.total_steps / steps_per_update


def _kind(name: str) -> str:
    """Return environment, task, algorithm and mixer from the name of a run directory: all but seed and hash."""
    return name.rsplit("_", 2)[0]


def _measure(folder: Path, kinds: set[str]) -> dict[str, tuple[float, float]]:
    """Return the median seconds of start-up and per environment step, for each kind with finished runs.

    Args:
        folder: the folder of the run directories.
        kinds: the kinds to measure.
    """
    samples: dict[str, list[tuple[float, float]]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in names:
        kind = _kind(name)
        if kind in kinds and len(samples.get(kind, ())) < _SAMPLE_SIZE:
            result = RunDirectory(folder / name).result() or {}
            try:
                sample = (result.get("start_s", 0.0), result["wall_s"] / result["env_steps"])
            except (KeyError, ZeroDivisionError):
                continue
            samples.setdefault(kind, []).append(sample)
    return {
        kind: (statistics.median(start_s for start_s, _ in pairs), statistics.median(step_s for _, step_s in pairs))
        for kind, pairs in samples.items()
    }
