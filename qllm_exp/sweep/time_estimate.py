"""Estimate how long a sweep takes, from finished runs of the same kind."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.utils.text import duration

_SAMPLE_SIZE = 5  # finished runs of each kind that are read


def estimate(runs: Sequence[PreparedRun], progress: Sequence[float], max_parallel: int) -> str:
    """Estimate the time that runs take.

    Two runs are of one kind if they have the same environment, task, algorithm and mixer. The finished runs of a kind tell the
    seconds of start-up, and the seconds per environment step.

    Args:
        runs: runs to start.
        progress: fraction of each run that is done already, from 0 to 1.
        max_parallel: number of runs at a time.

    Returns:
        'about 3 h 20 min, 16 at a time; 48 h 05 min of computing'; '' if no run of these kinds is finished.
    """
    if not runs:
        return ""
    folder = runs[0].directory.path.parent
    speeds = _measure(folder, {_kind(run.directory.path.name) for run in runs})
    seconds = []
    for run, fraction in zip(runs, progress, strict=True):
        kind = _kind(run.directory.path.name)
        if kind in speeds:
            start_s, step_s = speeds[kind]
            seconds.append(start_s + step_s * run.config.train.total_steps * (1 - fraction))
    if not seconds:
        return ""
    total = statistics.fmean(seconds) * len(runs)
    parallel = min(max_parallel, len(runs))
    wall = max(total / max(1, parallel), max(seconds))
    text = f"about {duration(wall)}, {parallel} at a time; {duration(total)} of computing"
    unknown = len(runs) - len(seconds)
    if unknown:
        text += f"; {unknown} without finished runs of their kind, taken as average"
    return text


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
