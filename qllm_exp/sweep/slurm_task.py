"""The runs packed into one allocation of a cluster: what a job of submitit's calls."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from qllm_exp.runs.progress_bar import LINE_EVERY_S
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.pool import Ended, Job, Pool, slots
from qllm_exp.sweep.progress import ending, live

log = logging.getLogger(__name__)


@dataclass
class Pack:
    """Calls its runs, some at a time, each from its last checkpoint. Raises RuntimeError at the end when one failed.

    Attributes:
        sweep: folder of the sweep. runs: names of their folders, beside it.
        at_once: runs at a time. cores: that the job has. device: 'cuda' when GPUs are to be handed round.
    """

    sweep: str
    runs: list[str]
    at_once: int
    cores: int
    device: str
    _pool: Pool | None = field(default=None, repr=False)

    def __call__(self) -> str:
        _log_to_stdout()
        sweep = Sweep(Path(self.sweep))
        terminated: list[int] = []
        places = slots(self.at_once, self.device)
        if len(os.sched_getaffinity(0)) > self.cores:  # the job is not kept to its cores, so its runs cannot be either
            places = [replace(place, cores=None) for place in places]
        observer = _Lines(sweep, len(self.runs))
        directories = [sweep.directory(name) for name in self.runs]
        # A job that is queued again leaves alone what ended in an earlier turn of it.
        left = [one for one in directories if one.result() is None and one.status().get("state") != "failed"]
        self._pool = pool = Pool(left, places, observer, may_start=sweep.may_start)

        def stop(number: int, frame: FrameType | None) -> None:
            terminated.append(number)
            pool.stop_asked = True

        signal.signal(signal.SIGTERM, stop)
        ended = pool.run()
        if terminated:
            self._go_on_elsewhere()
        for directory in pool.not_started:
            directory.set_status_of_another(
                "new", why=f"not started, since {sweep.record.max_failures} runs had failed"
            )
        failed = [one.path.name for one in directories if one.status().get("state") == "failed"]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(directories)} runs failed: {', '.join(failed)}")
        return f"{len(ended)} of {len(directories)} runs ended"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before a time limit, in a signal's handler: stop at checkpoints, and be queued again."""
        if self._pool is not None:
            log.info("stopping %d runs at their checkpoints", len(self._pool.jobs))
            self._pool.stop()
            self._pool.wait()
        return DelayedSubmission(replace(self, _pool=None))

    def _go_on_elsewhere(self) -> None:
        """After SIGTERM: Slurm queues a preempted job again by itself unless it ends in its time of grace; then we do.

        A job that was cancelled, or that is queued again already, is no longer RUNNING by now and is left as it is.
        """
        command = ["squeue", "--noheader", "--jobs", os.environ.get("SLURM_JOB_ID", ""), "--format", "%T"]
        try:
            state = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return
        if state == "RUNNING":
            log.info("asked to end by SIGTERM: to be queued again")
            os.kill(os.getpid(), signal.SIGUSR2)  # submitit's sign for preemption
            time.sleep(60)  # until its handler ends this process


def _log_to_stdout() -> None:
    """Our lines in the job's log, beside submitit's own."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("qllm_exp")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


class _Lines:
    """Plain lines in the job's log."""

    def __init__(self, sweep: Sweep, total: int) -> None:
        self.sweep, self.total, self.count, self.last = sweep, total, 0, time.monotonic()

    def show(self, jobs: Sequence[Job]) -> None:
        if time.monotonic() - self.last >= LINE_EVERY_S:
            self.last = time.monotonic()
            log.info("running: %s", "; ".join(live(job.directory) for job in jobs))

    def ended(self, one: Ended) -> None:
        self.count += 1
        if one.failed:
            self.sweep.note_failure(one.directory.path.name)
        log.info("[%d/%d] %s", self.count, self.total, ending(one))
