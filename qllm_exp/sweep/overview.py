"""The status of a sweep, as lines of text and as JSON: the state of each run, and what to do about it."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.runs.run_directory import CONFIG, RunDirectory, tail
from qllm_exp.runs.run_state import (
    DEAD,
    FAILED,
    FINISHED,
    INTERRUPTED,
    NEW,
    PRUNED,
    QUEUED,
    RUNNING,
    STATES,
    RunState,
    state_of,
)
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.runs.sweep_directory import RECORD, Sweep, run_folders, sweeps_in
from qllm_exp.sweep.progress import failure_report, progress, python_command
from qllm_exp.utils.text import count, inert, inert_lines

DISPLAY_ORDER = (
    FAILED,
    DEAD,
    RUNNING,
    QUEUED,
    INTERRUPTED,
    NEW,
    PRUNED,
    FINISHED,
)  # runs that need attention come first
MAX_RUNS = 20  # runs shown per state, unless all are requested
LOG_LINES = 5  # last lines shown of the log of a dead run
_STATE_WIDTH = 1 + max(map(len, STATES))


@dataclass(frozen=True)
class SweepStatus:
    """The states of the runs of a folder.

    Attributes:
        path: the folder.
        sweep: the sweep, if the folder is a sweep directory; else None.
        runs: the state of each run.
        warning: why the queue is unknown; empty if it is known.
    """

    path: Path
    sweep: Sweep | None
    runs: list[RunState]
    warning: str = ""

    def count(self, *states: str) -> int:
        """Return the number of runs that are in one of the given states."""
        return sum(run.state in states for run in self.runs)

    def is_idle(self) -> bool:
        """Return True if no run is running or queued."""
        return not self.count(RUNNING, QUEUED)

    def exit_code(self) -> int:
        """Return 0 if all runs are finished or pruned, 1 if some failed or are dead, 3 if some are not finished yet."""
        if self.count(FAILED, DEAD):
            return 1
        return 0 if self.count(FINISHED, PRUNED) == len(self.runs) else 3


def read_status(path: Path, names: Sequence[str] = ()) -> SweepStatus:
    """Return the status of a folder.

    Args:
        path: a sweep directory, a run directory, or a folder with many of them.
        names: names or directories of the runs to include; empty: all.

    Raises:
        UserError: the folder holds no runs, or not the named ones.
    """
    directories = [RunDirectory(folder) for folder in run_folders(path)]
    sweep = Sweep(path) if (path / RECORD).exists() else None
    if names:
        directories = _select(directories, names, path)
    warning = ""
    try:
        queue = Queue.query(base_folder(path))
    except UserError as error:
        queue, warning = Queue({}), str(error)
    return SweepStatus(path, sweep, [state_of(directory, queue) for directory in directories], warning)


def base_folder(path: Path) -> Path:
    """Return the folder that holds the run directories: the parent of a sweep or run directory, else the folder itself."""
    folder = path.absolute()
    return folder.parent if (folder / RECORD).exists() or (folder / CONFIG).exists() else folder


def _select(directories: Sequence[RunDirectory], names: Sequence[str], path: Path) -> list[RunDirectory]:
    """Return the directories of the named runs, each once."""
    by_name = {directory.path.name: directory for directory in directories}
    for name in names:
        if Path(name).name not in by_name:
            hint = nearest(Path(name).name, by_name)
            raise UserError(
                f"{path} has no run {name!r}.{hint} To list its runs: python -m qllm_exp status {path} --all"
            )
    return [by_name[name] for name in dict.fromkeys(Path(name).name for name in names)]


def title(status: SweepStatus) -> str:
    """Return 'runs/figure3: 30 runs: 8 finished, 2 running, 20 queued'. It is inert."""
    times = Counter(run.state for run in status.runs)
    parts = [f"{times[state]} {state}" for state in STATES if times[state]]
    return inert(f"{status.path}: {count(len(status.runs), 'run')}: {', '.join(parts)}")


def lines(status: SweepStatus, show_all: bool = False) -> Iterator[str]:
    """Yield the status as lines of text: the counts, then the runs that are not finished, then what to do about them.

    The lines are inert: names, errors and logs in a folder may come from anybody.

    Args:
        status: the status of a folder.
        show_all: include finished runs, and show every run of each state.
    """
    yield from map(inert_lines, _lines(status, show_all))


def _lines(status: SweepStatus, show_all: bool) -> Iterator[str]:
    """Yield the lines of `lines` as they are in the files."""
    yield title(status)
    if status.warning:
        yield f"  {status.warning}"
    if status.sweep is not None:
        line = f"  {status.sweep.record.started}  {status.sweep.record.command}"
        owner = status.sweep.owner()
        yield f"{line}; run here by {owner}" if owner else line
    sweeps = [] if status.sweep is None else [status.sweep]
    if not sweeps and status.count(FAILED, DEAD):
        sweeps = sweeps_in(base_folder(status.path))  # they know the logs of the jobs
    for state in DISPLAY_ORDER:
        if state == FINISHED and not show_all:
            continue
        runs = [run for run in status.runs if run.state == state]
        shown = runs if show_all else runs[:MAX_RUNS]
        for run in shown:
            yield from _run_lines(run, sweeps)
        if len(runs) > len(shown):
            yield f"  ... and {len(runs) - len(shown):,} more {state} (--all shows them)"
    yield from _advice(status)


def _run_lines(run: RunState, sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Yield the lines about one run."""
    if run.state in (FAILED, DEAD):
        yield from _failure_lines(run, sweeps)
        return
    details = run.reason
    if run.state == RUNNING:
        details = _join(progress(run.status), run.reason)
    elif run.state == FINISHED:
        details = _join(_final_return(run), run.reason)
    job = f"  [{run.job}]" if run.job else ""
    yield f"  {run.state:{_STATE_WIDTH}}{run.directory.path.name}  {details}{job}".rstrip()


def _failure_lines(run: RunState, sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Yield the lines about a failed or dead run: error, log, command, and for a dead run the end of its logs."""
    job_logs = [log for sweep in sweeps if (log := sweep.job_log(run.directory.path.name)) is not None][-1:]
    logs = [log for log in (run.directory.console, run.directory.log) if log.exists()] + job_logs
    yield (
        f"  {run.state:{_STATE_WIDTH}}" + failure_report(run.directory, run.reason, logs[0] if logs else None).lstrip()
    )
    if run.state == DEAD:
        for log in dict.fromkeys([*logs[:1], *job_logs]):
            yield from (f"    | {line}" for line in tail(log, LOG_LINES))


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _final_return(run: RunState) -> str:
    result = run.directory.result()
    return "" if result is None else f"return {result['final_return']:.3f}"


def _advice(status: SweepStatus) -> Iterator[str]:
    """Yield the commands that continue a sweep, and its table once it is finished."""
    if status.sweep is None:
        return
    path = shlex.quote(str(status.path))
    if status.count(FAILED, DEAD):
        yield f"retry failed runs:   {python_command()} -m qllm_exp retry {path}"
    missing = [run for run in status.runs if run.state in (INTERRUPTED, NEW)]
    if missing and status.is_idle():
        if all(run.directory.config.exists() for run in missing):
            command = f"{python_command()} -m qllm_exp retry {path} --missing"
        else:  # the command of the sweep also creates directories
            command = status.sweep.record.command
        yield f"start missing runs:  {command}"
    if status.count(PRUNED):
        yield f"resume a pruned run: {python_command()} -m qllm_exp retry {path} RUN"
    if status.count(FINISHED, PRUNED) == len(status.runs) and (status.path / "table.md").exists():
        yield f"table: {status.path / 'table.md'}"


def as_json(status: SweepStatus) -> dict[str, Any]:
    """Return the status as an object for JSON."""
    return {
        "folder": str(status.path),
        "counts": dict(Counter(run.state for run in status.runs)),
        "runs": [
            {
                "name": run.directory.path.name,
                "state": run.state,
                "reason": run.reason,
                "job": run.job.id if run.job else None,
                "env_step": run.status.get("env_step"),
                "total_steps": run.status.get("total_steps"),
                "return": run.status.get("return"),
            }
            for run in status.runs
        ],
    }
