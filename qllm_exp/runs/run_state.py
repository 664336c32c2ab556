"""How a run stands, from its folder and the queue alone."""

from dataclasses import dataclass, field
from typing import Any

from qllm_exp.runs.run_directory import HEARTBEAT_LIMIT_S, RunDirectory
from qllm_exp.runs.slurm_queue import Job, Queue
from qllm_exp.utils.text import duration

DONE = "done"
RUNNING = "running"
QUEUED = "queued"  # Slurm has it, and will start it or go on with it
FAILED = "failed"  # it ended with an error
DEAD = "dead"  # it ended without a word: no process, no job, no result
STOPPED = "stopped"  # at a checkpoint, on request
NEW = "new"  # not started yet
STATES = (DONE, RUNNING, QUEUED, FAILED, DEAD, STOPPED, NEW)


@dataclass(frozen=True)
class RunState:
    """State of a run. `why`: what a state does not say by itself, in words."""

    directory: RunDirectory
    state: str
    why: str = ""
    job: Job | None = None
    status: dict[str, Any] = field(default_factory=dict)


def state_of(directory: RunDirectory, queue: Queue) -> RunState:
    """How the run of a folder stands, whether the folder is there or not."""
    if directory.result() is not None:
        return RunState(directory, DONE, status=directory.status())
    job = queue.job_of(directory.path)
    status = directory.status()
    state, why = _unfinished(directory, status, job)
    if state == DEAD and not queue.asked:
        why += ", or waits in a queue that cannot be asked from here (no squeue)"
    if state in (DEAD, NEW, QUEUED) and directory.stop_request.exists():
        share = _share(status)
        state, why = STOPPED, f"on request, at {100 * share:.0f}%" if share else "not started, on request"
    return RunState(directory, state, why, job, status)


def _unfinished(directory: RunDirectory, status: dict[str, Any], job: Job | None) -> tuple[str, str]:
    said = status.get("state", "")
    if said == "failed":
        return FAILED, str(status.get("error") or "no message")
    if said == "running":
        return _running(directory, status, job)
    if said == "new":  # left alone by the job that had it
        return NEW, str(status.get("why") or "")
    if job is not None:
        return QUEUED, "its turn comes in its job" if job.state == "RUNNING" else ""
    if said == "queued":
        return DEAD, "its job is no longer in the queue and never started it"
    if said == "interrupted":
        return STOPPED, f"at {100 * _share(status):.0f}%"
    return NEW, ""


def _running(directory: RunDirectory, status: dict[str, Any], job: Job | None) -> tuple[str, str]:
    """A run that said last that it was running."""
    silent = directory.silent_s(status)
    silence = _silence(silent) if silent > HEARTBEAT_LIMIT_S else ""
    if directory.owner():
        return RUNNING, silence
    if job is None:
        return DEAD, f"ended without a word at {100 * _share(status):.0f}%; {_silence(silent)}"
    if job.state != "RUNNING":
        return QUEUED, "goes on when its job starts again"
    if float(status.get("heartbeat") or 0) < job.started:
        return QUEUED, "goes on when its turn comes in its job"
    return RUNNING, silence


def _share(status: dict[str, Any]) -> float:
    return (status.get("env_step") or 0) / max(1, status.get("total_steps") or 1)


def _silence(seconds: float) -> str:
    return f"no sign of life for {duration(seconds)}"
