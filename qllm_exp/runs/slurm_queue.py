"""What Slurm's queue holds of our runs. `squeue` is all that is asked: many clusters have no accounting database.

A submission's job is called SWEEP.TOKEN; the folder DIR/SWEEP/jobs/TOKEN says which runs its array tasks have. It is written
before the job is submitted, so that a submission is known however its process ended.
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
PACKS = "packs.json"  # in a submission's folder: for each array task, the names of its runs
SQUEUE_S = 60  # seconds that squeue may take

_FORMAT = "%i|%K|%T|%S|%r|%j"  # job, array task, state, start, reason, name


@dataclass(frozen=True)
class Job:
    """A job that the queue holds."""

    id: str  # '17_3', or '17' where a submission has one task only
    state: str  # 'PENDING', 'RUNNING', 'COMPLETING', ...
    reason: str
    started: float  # seconds since 1970; 0 for one that has not started

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.state == "PENDING" and self.reason not in ("", "None") else ""
        return f"job {self.id} {self.state}{reason}"


class Queue:
    """For each run that a job in the queue still has: the job.

    Attributes:
        asked: False where there were submissions and there is no Slurm here to ask.
    """

    def __init__(self, jobs: dict[Path, Job], asked: bool = True) -> None:
        self._jobs, self.asked = jobs, asked

    @classmethod
    def look(cls, folder: Path) -> "Queue":
        """Ask Slurm, if one of the sweeps in the folder was ever submitted from here. UserError when it does not answer."""
        if not any(folder.glob(f"*/{JOBS}")):
            return cls({})
        if shutil.which("squeue") is None:
            return cls({}, asked=False)
        jobs: dict[Path, Job] = {}
        for job, name, task in _listed():
            sweep, _, token = name.rpartition(".")
            packs = packs_of(folder / sweep / JOBS / token) if sweep else []
            for run in packs[task] if task < len(packs) else ():
                jobs[(folder / run).absolute()] = job
        return cls(jobs)

    def job_of(self, run: Path) -> Job | None:
        return self._jobs.get(run.absolute())

    def runs_of(self, job: str) -> set[str]:
        """Names of the runs that a job has, by the job's id."""
        return {run.name for run, one in self._jobs.items() if one.id == job}


def packs_of(submission: Path) -> list[list[str]]:
    """The runs of each task of a submission, by name; none when the folder is no submission."""
    try:
        packs: list[list[str]] = json.loads((submission / PACKS).read_text())
    except (OSError, ValueError):
        return []
    return packs


def _listed() -> Iterator[tuple[Job, str, int]]:
    """Job, its name and its array task, for every job of this user's."""
    command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", _FORMAT]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")
    }  # a user's own defaults
    environment |= {"SLURM_TIME_FORMAT": "%s"}  # seconds since 1970
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(_no_answer(str(error))) from None
    if done.returncode:
        raise UserError(_no_answer(done.stderr.strip() or f"exit code {done.returncode}"))
    for line in done.stdout.splitlines():
        ident, task, state, start, reason, name = line.split("|", 5)
        started = float(start) if start.isdigit() and state != "PENDING" else 0.0
        yield Job(ident, state, reason, min(started, time.time())), name, int(task) if task.isdigit() else 0


def _no_answer(why: str) -> str:
    return f"squeue does not answer, so it is not known which runs are queued ({why}). Try again when Slurm is up."
