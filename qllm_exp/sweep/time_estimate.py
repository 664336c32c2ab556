"""How long a sweep will take, from runs that are finished."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.sweep.prepare import Prepared
from qllm_exp.utils.text import duration

_ENOUGH = 5  # finished runs per kind that are looked at


def estimate(runs: Sequence[Prepared], done_share: Sequence[float], slots: int) -> str:
    """'about 3 h 20 min on 16 at a time (from 14 finished runs)'; '' when no finished run is like any of these.

    A finished run is like another when environment, task, algorithm and mixer are the same. Its seconds of start-up and per
    environment step count.

    Args:
        done_share: how much of each run is done already, 0 to 1. slots: runs at a time.
    """
    if not runs:
        return ""
    folder = runs[0].directory.path.parent
    speeds = _seconds(folder, {_kind(one.directory.path.name) for one in runs})
    costs = [
        speeds[kind][0] + speeds[kind][1] * one.run.train.total_steps * (1 - share)
        for one, share in zip(runs, done_share, strict=True)
        if (kind := _kind(one.directory.path.name)) in speeds
    ]
    if not costs:
        return ""
    average = statistics.fmean(costs)
    total = average * len(runs)
    wall = max(total / max(1, min(slots, len(runs))), max(costs))
    missing = len(runs) - len(costs)
    guess = f"; nothing is known of {missing}, taken as average" if missing else ""
    return f"about {duration(wall)}, {min(slots, len(runs))} at a time; {duration(total)} of computing{guess}"


def _kind(name: str) -> str:
    """Environment, task, algorithm and mixer in a run folder's name: all but the seed and the digits at the end."""
    return name.rsplit("_", 2)[0]


def _seconds(folder: Path, kinds: set[str]) -> dict[str, tuple[float, float]]:
    """Median seconds of start-up, and per environment step, of a few finished runs of each kind."""
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in names:
        kind = _kind(name)
        if kind in kinds and len(found.get(kind, ())) < _ENOUGH:
            try:
                result = json.loads((folder / name / "result.json").read_text())
                seconds = (result.get("start_s", 0.0), result["wall_s"] / result["env_steps"])
                found.setdefault(kind, []).append(seconds)
            except (OSError, ValueError, KeyError, ZeroDivisionError):
                continue
    return {
        kind: (statistics.median(start for start, _ in seconds), statistics.median(step for _, step in seconds))
        for kind, seconds in found.items()
    }
