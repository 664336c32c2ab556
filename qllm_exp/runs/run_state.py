"""The state of a run, determined from its directory and the Slurm queue alone.

`status.json` holds what the run's own process wrote last. That process may have been killed since, so the state of a run also
depends on the lock of its directory, its heartbeat and the jobs in the queue.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from qllm_exp.runs.run_directory import HEARTBEAT_LIMIT_S, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.utils.text import duration

NEW = "new"  # not started
QUEUED = "queued"  # Slurm has it, and will start or resume it
RUNNING = "running"
FINISHED = "finished"  # all steps done: result.json exists
INTERRUPTED = "interrupted"  # stopped at a checkpoint, or cancelled before it started
PRUNED = "pruned"  # stopped at a checkpoint, or not started, since other settings of its search are better
FAILED = "failed"  # ended with an error
DEAD = "dead"  # ended without an error message: no process, no job, no result
STATES = (FINISHED, PRUNED, RUNNING, QUEUED, FAILED, DEAD, INTERRUPTED, NEW)


@dataclass(frozen=True)
class RunState:
    """State of a run.

    Attributes:
        directory: the run's directory.
        state: one of STATES.
        reason: details that the state alone does not tell, such as the error of a failed run; may be empty.
        job: the Slurm job that has the run, if any.
        status: content of its status.json; {} if there is none.
    """

    directory: RunDirectory
    state: str
    reason: str = ""
    job: Job | None = None
    status: dict[str, Any] = field(default_factory=dict)


def state_of(directory: RunDirectory, queue: Queue) -> RunState:
    """Return the state of a run.

    Args:
        directory: the run's directory; it need not exist.
        queue: the jobs that Slurm has.
    """
    if directory.result() is not None:
        return RunState(directory, FINISHED, status=directory.status())
    job = queue.job_of(directory.path)
    status = directory.status()
    state, reason = _unfinished_state(directory, status, job)
    pruned = directory.pruned()
    if pruned and state != RUNNING:
        return RunState(directory, PRUNED, pruned, job, status)
    if state == DEAD and not queue.known:
        reason += ", or still in a queue that cannot be read from here (no squeue)"
    if state in (DEAD, NEW, QUEUED) and directory.stop_request.exists():
        progress = _progress(status)
        state = INTERRUPTED
        reason = f"cancelled at {100 * progress:.0f}%" if progress else "cancelled before it started"
    return RunState(directory, state, reason, job, status)


def _unfinished_state(directory: RunDirectory, status: dict[str, Any], job: Job | None) -> tuple[str, str]:
    """Return the state and its reason for a run without a result."""
    recorded = status.get("state", "")
    if recorded == FAILED:
        return FAILED, str(status.get("error") or "no error message")
    if recorded == RUNNING:
        return _recorded_running(directory, status, job)
    if recorded == PRUNED:
        return PRUNED, str(status.get("reason") or "")
    if recorded == NEW:  # its job ended without starting it
        return NEW, str(status.get("reason") or "")
    if job is not None:
        return QUEUED, "waiting for its turn within its job" if job.state == "RUNNING" else ""
    if recorded == QUEUED:
        return DEAD, "its job left the queue without starting it"
    if recorded == INTERRUPTED:
        return INTERRUPTED, f"at {100 * _progress(status):.0f}%"
    return NEW, ""


def _recorded_running(directory: RunDirectory, status: dict[str, Any], job: Job | None) -> tuple[str, str]:
    """Return the state and its reason for a run whose status file says that it is running."""
    age_s = directory.heartbeat_age_s()
    warning = _last_heartbeat(age_s) if age_s > HEARTBEAT_LIMIT_S else ""
    if directory.owner():
        return RUNNING, warning
    if job is None:
        place = f"{100 * _progress(status):.0f}%{_checkpoint(status)}"
        return DEAD, f"ended without an error message at {place}; {_last_heartbeat(age_s)}"
    if job.state != "RUNNING":
        return QUEUED, "resumes when its job starts again"
    if age_s > time.time() - job.started:
        return QUEUED, "resumes at its turn within its job"
    return RUNNING, warning


def _progress(status: dict[str, Any]) -> float:
    """Return the fraction of environment steps that are done, from 0 to 1."""
    return (status.get("env_step") or 0) / max(1, status.get("total_steps") or 1)


def _checkpoint(status: dict[str, Any]) -> str:
    """Return ', checkpoint at 40%' for a run that was killed later than at its last checkpoint; else ''."""
    step = status.get("checkpoint_step")  # None in runs of an older version
    if step is None or step >= (status.get("env_step") or 0):
        return ""
    return f", checkpoint at {100 * step / max(1, status.get('total_steps') or 1):.0f}%"


def _last_heartbeat(seconds: float) -> str:
    return f"last heartbeat {duration(seconds)} ago"
