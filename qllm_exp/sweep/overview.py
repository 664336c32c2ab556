"""What a folder holds, for a person: how each of its runs stands, in words."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory, tail
from qllm_exp.runs.run_state import DEAD, DONE, FAILED, NEW, QUEUED, RUNNING, STATES, STOPPED, RunState, state_of
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import RECORD, Sweep, run_folders
from qllm_exp.sweep.progress import failure, progress, python
from qllm_exp.utils.text import count

ORDER = (FAILED, DEAD, RUNNING, QUEUED, STOPPED, NEW, DONE)  # of what is shown: what needs a person first
SHOWN = 20  # runs per state, unless all are asked for
LAST_LINES = 5  # of a run that ended without a word


@dataclass(frozen=True)
class SweepStatus:
    """How the runs of a folder stand. `sweep` is None for a folder that holds several sweeps, or is one run's.

    Attributes:
        note: why the queue is not known, if it is not.
    """

    path: Path
    sweep: Sweep | None
    runs: list[RunState]
    note: str = ""

    def count(self, *states: str) -> int:
        return sum(one.state in states for one in self.runs)

    def over(self) -> bool:
        """Whether nothing runs and nothing is queued."""
        return not self.count(RUNNING, QUEUED)

    def exit_code(self) -> int:
        """0 all done, 1 some failed, 3 not all done yet."""
        if self.count(FAILED, DEAD):
            return 1
        return 0 if self.count(DONE) == len(self.runs) else 3


def look(path: Path, names: Sequence[str] = ()) -> SweepStatus:
    """SweepStatus at a sweep's folder, a run's, or one with many of either. UserError when it is none of these.

    Args:
        names: runs, by name or by folder; none: all.
    """
    directories = [RunDirectory(one) for one in run_folders(path)]
    sweep = Sweep(path) if (path / RECORD).exists() else None
    if names:
        directories = _chosen(directories, names, path)
    note = ""
    try:
        queue = Queue.look(base_of(path))
    except UserError as error:
        queue, note = Queue({}), str(error)
    return SweepStatus(path, sweep, [state_of(one, queue) for one in directories], note)


def base_of(path: Path) -> Path:
    """The folder in which the runs of a folder are: its parent, or itself when it holds many."""
    whole = path.absolute()
    return whole.parent if (whole / RECORD).exists() or (whole / "config.yaml").exists() else whole


def _chosen(directories: Sequence[RunDirectory], names: Sequence[str], path: Path) -> list[RunDirectory]:
    known = {one.path.name: one for one in directories}
    unknown = [name for name in names if Path(name).name not in known]
    if unknown:
        raise UserError(f"{path} has no run {unknown[0]!r}; python -m launch.status {path} --all lists them.")
    return [known[name] for name in dict.fromkeys(Path(name).name for name in names)]


def title(seen: SweepStatus) -> str:
    """'runs/figure3: 30 runs: 8 done, 2 running, 20 queued'."""
    times = Counter(one.state for one in seen.runs)
    parts = [f"{times[state]} {state}" for state in STATES if times[state]]
    return f"{seen.path}: {count(len(seen.runs), 'run')}: {', '.join(parts)}"


def lines(seen: SweepStatus, everything: bool = False) -> Iterator[str]:
    """The whole in lines of text: counts, then each run that is not done, with what to do about it.

    Args:
        everything: finished runs too, and no limit to the number of lines.
    """
    yield title(seen)
    if seen.note:
        yield f"  {seen.note}"
    if seen.sweep is not None:
        holder = seen.sweep.holder()
        by = f"; run here by {holder}" if holder else ""
        yield f"  {seen.sweep.record.started}  {seen.sweep.record.command}{by}"
    for state in ORDER:
        those = [one for one in seen.runs if one.state == state]
        if state == DONE and not everything:
            continue
        for one in those if everything else those[:SHOWN]:
            yield from _run(one, seen.sweep)
        if not everything and len(those) > SHOWN:
            yield f"  ... and {len(those) - SHOWN:,} more {state} (--all shows them)"
    yield from _advice(seen)


def _run(one: RunState, sweep: Sweep | None) -> Iterator[str]:
    name, job = one.directory.path.name, f"  [{one.job}]" if one.job else ""
    if one.state in (FAILED, DEAD):
        job_log = sweep.job_log(name) if sweep is not None else None
        logs = [log for log in (one.directory.console, one.directory.log, job_log) if log is not None and log.exists()]
        yield f"  {one.state:8}" + failure(one.directory, one.why, next(iter(logs), None)).lstrip()
        if one.state == DEAD:
            last = [
                line for log in {*logs[:1], *([job_log] if job_log in logs else [])} for line in tail(log, LAST_LINES)
            ]
            yield from (f"    | {line}" for line in last)
        return
    words = {RUNNING: progress(one.status), DONE: _return(one)}.get(one.state, "")
    yield f"  {one.state:8}{name}  {'; '.join(part for part in (words, one.why) if part)}{job}".rstrip()


def _return(one: RunState) -> str:
    result = one.directory.result()
    return "" if result is None else f"return {result['final_return']:.3f}"


def _advice(seen: SweepStatus) -> Iterator[str]:
    where = shlex.quote(str(seen.path))
    if seen.sweep is None:
        return
    if seen.count(FAILED, DEAD):
        yield f"run what failed again:  {python()} -m launch.retry {where}"
    missing = [one for one in seen.runs if one.state in (STOPPED, NEW)]
    if missing and seen.over():
        ready = all(one.directory.config.exists() for one in missing)
        again = f"{python()} -m launch.retry {where} --missing" if ready else seen.sweep.record.command
        yield f"run what is missing:    {again}"
    if seen.count(DONE) == len(seen.runs) and (seen.path / "table.md").exists():
        yield f"table: {seen.path / 'table.md'}"


def as_json(seen: SweepStatus) -> dict[str, Any]:
    """The same for programs."""
    return {
        "folder": str(seen.path),
        "counts": dict(Counter(one.state for one in seen.runs)),
        "runs": [
            {
                "name": one.directory.path.name,
                "state": one.state,
                "why": one.why,
                "job": one.job.id if one.job else None,
                "env_step": one.status.get("env_step"),
                "total_steps": one.status.get("total_steps"),
                "return": one.status.get("return"),
            }
            for one in seen.runs
        ],
    }
