"""The runs that are in Slurm's queue. Only `squeue` is used: many clusters have no accounting database.

The job of a submission is named SWEEP.TOKEN, and DIR/SWEEP/jobs/TOKEN lists the runs of each of its array tasks. That folder is
written before the job is submitted, so the runs of every job are known, however the submitting process ended.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qllm_exp.errors import UserError

JOBS = "jobs"  # folder of a sweep's submissions, within the sweep's folder
PACKS = "packs.json"  # in a submission's folder: the names of the runs of each array task
SQUEUE_S = 60  # time limit of squeue, in seconds

_FORMAT = "%i|%K|%T|%S|%r|%j"  # job, array task, state, start, reason, name


@dataclass(frozen=True)
class Job:
    """A job in the queue.

    Attributes:
        id: '17_3', or '17' if the submission has only one task.
        state: Slurm's state: 'PENDING', 'RUNNING', 'COMPLETING', ...
        reason: Slurm's reason why the job is pending.
        started: start time, seconds since 1970; 0 if it has not started.
    """

    id: str
    state: str
    reason: str
    started: float

    def __str__(self) -> str:
        text = f"job {self.id} {self.state}"
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({self.reason})"
        return text


class Queue:
    """The jobs in the queue, by the runs that they have.

    Args:
        jobs: directory of each run in the queue, and its job.
        known: False if there were submissions, but there is no squeue here to list them.
    """

    def __init__(self, jobs: dict[Path, Job], known: bool = True) -> None:
        self._jobs = jobs
        self.known = known

    @classmethod
    def query(cls, folder: Path) -> "Queue":
        """Return the queued runs of the sweeps in a folder. Slurm is queried only if one of them has a submission.

        Args:
            folder: the folder that holds the sweep directories and the run directories.

        Raises:
            UserError: squeue does not answer.
        """
        if not any(folder.glob(f"*/{JOBS}")):
            return cls({})
        if shutil.which("squeue") is None:
            return cls({}, known=False)
        jobs: dict[Path, Job] = {}
        for job, name, task in _list_jobs():
            sweep, _, token = name.rpartition(".")
            packs = read_packs(folder / sweep / JOBS / token) if sweep else []
            if task < len(packs):
                for run in packs[task]:
                    jobs[(folder / run).absolute()] = job
        return cls(jobs)

    def job_of(self, run: Path) -> Job | None:
        """Return the job that has a run, given the run's directory."""
        return self._jobs.get(run.absolute())

    def runs_of(self, job_id: str) -> set[str]:
        """Return the names of the runs that a job has."""
        return {run.name for run, job in self._jobs.items() if job.id == job_id}


def read_packs(submission: Path) -> list[list[str]]:
    """Return the names of the runs of each array task of a submission; [] if the folder is not a submission."""
    try:
        packs: list[list[str]] = json.loads((submission / PACKS).read_text())
    except (OSError, ValueError):
        return []
    return packs


def _list_jobs() -> Iterator[tuple[Job, str, int]]:
    """Yield each job of this user, with its name and the index of its array task."""
    for line in squeue("--array", "--user", str(os.getuid()), "--format", _FORMAT):
        if line.count("|") < 5:  # a heading or blank line between two clusters (SLURM_CLUSTERS)
            continue
        job_id, task, state, start, reason, name = line.split("|", 5)
        started = float(start) if start.isdigit() and state != "PENDING" else 0.0
        yield Job(job_id, state, reason, min(started, time.time())), name, int(task) if task.isdigit() else 0


def squeue(*options: str) -> list[str]:
    """Return the lines that squeue prints, without a heading.

    Args:
        options: options of squeue.

    Raises:
        UserError: squeue does not answer.
    """
    command = ["squeue", "--noheader", *options]
    # SQUEUE_* variables are a user's own defaults and would change the output.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    environment["SLURM_TIME_FORMAT"] = "%s"  # seconds since 1970
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(_no_answer(str(error))) from None
    if process.returncode:
        raise UserError(_no_answer(process.stderr.strip() or f"exit code {process.returncode}"))
    return process.stdout.splitlines()


def _no_answer(reason: str) -> str:
    return f"squeue does not answer, so it is unknown which runs are queued ({reason}). Try again when Slurm is up."
