"""The runs packed into one Slurm job: the function that submitit calls in that job."""

import contextlib
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
from qllm_exp.runs.run_state import FAILED, NEW
from qllm_exp.runs.sweep_directory import FailureLimit, Sweep
from qllm_exp.sweep.measured_load import follow_load
from qllm_exp.sweep.mps import mps_daemons
from qllm_exp.sweep.pool import ActiveRun, Pool, RunOutcome, make_slots
from qllm_exp.sweep.progress import live_line, outcome_line
from qllm_exp.sweep.pruning import Pruner

log = logging.getLogger(__name__)


@dataclass
class Pack:
    """Trains the runs of a job, several at a time, each from its last checkpoint.

    Submitted jobs hold pickled packs: renaming the class or a field breaks jobs that are in the queue.

    Attributes:
        sweep: directory of the sweep.
        runs: names of the run directories, which lie beside the directory of the sweep.
        at_once: number of runs at a time.
        cores: number of CPU cores that the job has.
        device: 'cuda' if the runs share the GPUs, else 'cpu'.
        failures: name of the folder of the command's failed runs, in the directory of the sweep.
        max_failures: number of failed runs of the command after which no further run starts; 0: no limit.
        mps: runs share a GPU through NVIDIA's MPS.
        max_load: share of the cores, of each GPU and of the memory up to which further runs start; 0: the number of runs is fixed.
    """

    sweep: str
    runs: list[str]
    at_once: int
    cores: int
    device: str
    failures: str = ""
    max_failures: int = 0
    mps: bool = False
    max_load: float = 0
    _pool: Pool | None = field(default=None, repr=False)

    def __call__(self) -> str:
        """Train the runs.

        Returns:
            How many runs ended, for submitit's result file.

        Raises:
            RuntimeError: some runs failed; raised when all have ended, so that Slurm shows the job as failed.
        """
        _log_to_stdout()
        sweep = Sweep(Path(self.sweep))
        slots = make_slots(self.at_once, self.device)
        if (
            len(os.sched_getaffinity(0)) > self.cores
        ):  # Slurm does not bind the job to its cores, so neither are the runs
            slots = [replace(slot, cores=None) for slot in slots]
        slots, limit = follow_load(slots, self.max_load, self.cores)
        directories = [sweep.directory(name) for name in self.runs]
        # A requeued job skips the runs that ended before.
        remaining = [
            directory
            for directory in directories
            if directory.result() is None and directory.status().get("state") != FAILED
        ]
        failures = FailureLimit(sweep.path / self.failures, self.max_failures)
        observer = _JobLog(failures, len(self.runs))
        pruner = Pruner.of(sweep)
        prune = pruner.update if pruner else None
        self._pool = pool = Pool(remaining, slots, observer, may_start=failures.may_start, prune=prune, limit=limit)
        terminated = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal terminated
            terminated = True
            pool.stop_requested = True

        signal.signal(signal.SIGTERM, stop)
        with mps_daemons(slots, self.mps) as pool.slots:
            outcomes = pool.run()
        if terminated:
            self._requeue_if_preempted()
        reached = f"sweep.max_failures={self.max_failures} was reached"
        reason = f"not started: {'the disk is full' if pool.disk_full else reached}"
        for directory in pool.not_started:
            with contextlib.suppress(OSError):  # the disk is full, or the directory was removed
                directory.set_status_from_outside(NEW, reason=reason)
        ended_here = {outcome.directory.path.name for outcome in outcomes if outcome.failed}
        failed = [
            directory.path.name
            for directory in directories
            if directory.path.name in ended_here or directory.status().get("state") == FAILED
        ]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(directories)} runs failed: {', '.join(failed)}")
        return f"{len(outcomes)} of {len(directories)} runs ended"

    def checkpoint(self) -> DelayedSubmission:
        """Stop the runs at checkpoints, and return the job to requeue.

        submitit calls this in a signal handler, before the time limit and after a preemption.
        """
        if self._pool is not None:
            log.info("stopping %d runs at a checkpoint", len(self._pool.active))
            self._pool.stop()
            self._pool.wait()
        return DelayedSubmission(replace(self, _pool=None))

    def _requeue_if_preempted(self) -> None:
        """Requeue a job that was preempted with SIGTERM.

        Slurm requeues a preempted job itself, unless the job ends within its grace period, as this one does. A job that was
        cancelled, or requeued already, is not RUNNING any more, and is left as it is.
        """
        command = ["squeue", "--noheader", "--jobs", os.environ.get("SLURM_JOB_ID", ""), "--format", "%T"]
        try:
            state = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return
        if state == "RUNNING":
            log.info("received SIGTERM: requeueing the job")
            os.kill(os.getpid(), signal.SIGUSR2)  # submitit's signal for a preemption
            time.sleep(60)  # until submitit's handler ends this process


def _log_to_stdout() -> None:
    """Write the package's log lines into the job's log, beside those of submitit."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package_log = logging.getLogger("qllm_exp")
    package_log.handlers = [handler]
    package_log.propagate = False
    package_log.setLevel(logging.INFO)


class _JobLog:
    """Observer of a pool: writes plain lines into the job's log, and marks failed runs in the sweep directory."""

    def __init__(self, failures: FailureLimit, total: int) -> None:
        self._failures = failures
        self._total = total
        self._ended = 0
        self._last_line = time.monotonic()

    def show(self, active: Sequence[ActiveRun]) -> None:
        if time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            log.info("running: %s", "; ".join(live_line(run.directory) for run in active))

    def run_ended(self, outcome: RunOutcome) -> None:
        self._ended += 1
        if outcome.failed:
            self._failures.mark(outcome.directory.path.name)
        log.info("[%d/%d] %s", self._ended, self._total, outcome_line(outcome))
