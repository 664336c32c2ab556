"""Run several runs at a time, each in its own process, on its own cores and GPU. A failed run does not affect the others.

On this machine a pool has the runs of a whole sweep; within a Slurm job it has the runs packed into that job.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qllm_exp.errors import UserError
from qllm_exp.experiment import BUSY, DISK_FULL, REMOVED
from qllm_exp.experiment import INTERRUPTED as EXIT_INTERRUPTED
from qllm_exp.runs.run_directory import DiskFull, RunDirectory
from qllm_exp.runs.run_state import FAILED, INTERRUPTED, RUNNING
from qllm_exp.sweep.fork_server import ForkServer, Worker
from qllm_exp.utils.text import signal_name

POLL_S = 0.1  # seconds between checks of the pool's own workers
BUSY_POLL_S = 1.0  # seconds between checks of a run that another process has
PRUNE_S = 2.0  # seconds between comparisons of the settings of a search; a run takes up to five more to see the request to stop


@dataclass(frozen=True)
class Slot:
    """Resources of one run at a time.

    Attributes:
        cores: CPU cores that the run may use; None: all.
        gpu: its GPU, as CUDA_VISIBLE_DEVICES names it; '' leaves the variable as it is.
        mps_pipe: folder of the MPS daemon of that GPU; '': the run uses the GPU without such a daemon.
    """

    cores: frozenset[int] | None = None
    gpu: str = ""
    mps_pipe: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the run gets besides those of the pool."""
        variables = {"CUDA_VISIBLE_DEVICES": self.gpu, "CUDA_MPS_PIPE_DIRECTORY": self.mps_pipe}
        return {name: value for name, value in variables.items() if value}


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        directory: the run's directory.
        error: why it did not finish; empty if it finished.
        failed: True if it failed or is dead, False if it finished, was interrupted or was not started.
        disk_full: True if it failed because the disk is full, which concerns all runs.
    """

    directory: RunDirectory
    error: str = ""
    failed: bool = False
    disk_full: bool = False


@dataclass
class ActiveRun:
    """A run in progress.

    Attributes:
        directory: the run's directory.
        worker: its process; None while another process has the run.
        checked: time of the last check of a run that another process has.
    """

    directory: RunDirectory
    worker: Worker | None
    checked: float = 0.0


class Observer(Protocol):
    """Receives the events of a pool."""

    def show(self, active: Sequence[ActiveRun]) -> None:
        """Show the runs in progress; called several times a second."""

    def run_ended(self, outcome: RunOutcome) -> None:
        """Record how a run ended; called once per run, and once for all runs that fail because the disk is full."""


class Pool:
    """Runs the given runs, as many at a time as there are slots and the limit allows.

    Once a run finds the disk full, no further run starts.

    Args:
        directories: directories of the runs.
        slots: resources of each run at a time.
        observer: receives the events.
        create: called with the directory of a run just before it starts; writes its configuration.
        may_start: called before each start; after it returns False, no further run starts.
        prune: called every PRUNE_S seconds with the runs in progress; may request runs to stop, or not to start. None: no pruning.
        limit: called several times a second with the process ids of the runs in progress; returns how many may run at a time. None:
            as many as there are slots.
    """

    def __init__(
        self,
        directories: Sequence[RunDirectory],
        slots: Sequence[Slot],
        observer: Observer,
        create: Callable[[RunDirectory], None] = lambda directory: None,
        may_start: Callable[[], bool] = lambda: True,
        prune: Callable[[Sequence[RunDirectory]], None] | None = None,
        limit: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        self.waiting = deque(directories)
        self.slots = slots
        self.observer = observer
        self.create = create
        self.may_start = may_start
        self.prune = prune
        self.limit = limit
        self.active: dict[int, ActiveRun] = {}  # by the index of the slot
        self.outcomes: list[RunOutcome] = []
        self.not_started: list[RunDirectory] = []  # because `may_start` returned False, or the disk is full
        self.disk_full = False
        self.stop_requested = False  # a signal handler may set it: the pool then calls `stop`
        self._fork_server: ForkServer | None = None
        self._stopping = False
        self._pruned_at = time.monotonic()

    def run(self) -> list[RunOutcome]:
        """Run all runs, and return their outcomes."""
        self._run_all()
        self._close()
        return self.outcomes

    def _run_all(self) -> None:
        while self.waiting or self.active:
            if self.stop_requested:
                self.stop_requested = False
                self.stop()
            limit = self._limit()
            for index in range(len(self.slots)):
                if index not in self.active and self.waiting and len(self.active) < limit:
                    self._start_next(index)
            for index, run in list(self.active.items()):
                outcome = self._check(run, self.slots[index])
                if outcome is not None:
                    del self.active[index]
                    self._end(outcome)
            self._prune()
            self.observer.show(list(self.active.values()))
            if self.waiting or self.active:
                self._sleep()

    def _limit(self) -> int:
        """Return how many runs may run at a time."""
        if self.limit is None:
            return len(self.slots)
        workers = [run.worker for run in self.active.values() if run.worker is not None]
        return self.limit([worker.pid for worker in workers if worker.pid is not None])

    def _prune(self) -> None:
        if self.prune is not None and time.monotonic() - self._pruned_at >= PRUNE_S:
            self.prune([run.directory for run in self.active.values()])
            self._pruned_at = time.monotonic()

    def stop(self) -> None:
        """Start no further run, and ask the workers to stop at a checkpoint. Runs of other processes continue."""
        self._stopping = True
        self.waiting.clear()
        self.active = {index: run for index, run in self.active.items() if run.worker is not None}
        for run in self.active.values():
            if run.worker is not None:
                run.worker.terminate()

    def wait(self) -> None:
        """Return once every worker has ended."""
        for run in self.active.values():
            if run.worker is not None:
                run.worker.wait()
                while run.worker.lost and run.directory.owner():  # on its way to a checkpoint, without its parent
                    time.sleep(POLL_S)
        self._close()

    def kill(self) -> None:
        """End every worker at once."""
        for run in self.active.values():
            if run.worker is not None:
                run.worker.kill()
        self.wait()

    def _close(self) -> None:
        if self._fork_server is not None:
            self._fork_server.close()

    def _sleep(self) -> None:
        """Wait for POLL_S, or until a worker ends."""
        if self._fork_server is not None and self._fork_server.alive:
            self._fork_server.read_reports(POLL_S)
        else:
            time.sleep(POLL_S)

    def _start_next(self, index: int) -> None:
        """Start the next waiting run in a free slot."""
        if self.disk_full or not self.may_start():
            self.not_started += self.waiting
            self.waiting.clear()
            return
        directory = self.waiting.popleft()
        pruned = directory.pruned()
        if directory.stop_request.exists() and not pruned:
            self._end(RunOutcome(directory, "cancelled before it started"))
            return
        try:
            self.create(directory)
        except UserError as error:
            self._end(RunOutcome(directory, str(error), failed=True, disk_full=isinstance(error, DiskFull)))
            return
        if pruned:
            self._end(RunOutcome(directory, f"pruned: {pruned}"))
        elif directory.owner():
            self.active[index] = ActiveRun(directory, None, time.monotonic())
        else:
            self.active[index] = ActiveRun(directory, self._start_worker(directory, self.slots[index]))

    def _start_worker(self, directory: RunDirectory, slot: Slot) -> Worker:
        if self._fork_server is not None and not self._fork_server.alive:
            if not self._fork_server.pids:
                raise UserError("No run was started: the fork server ended at once. Its error message is above.")
            self._close()
            self._fork_server = None
        if self._fork_server is None:
            self._fork_server = ForkServer()
        return self._fork_server.start(directory, slot.cores, slot.environment)

    def _check(self, run: ActiveRun, slot: Slot) -> RunOutcome | None:
        """Return the outcome of a run; None while it is in progress."""
        if run.worker is None:
            return self._check_busy(run, slot)
        code = run.worker.poll()
        if code == BUSY:
            if self._stopping and not run.worker.lost:
                return RunOutcome(run.directory, "left to the process that has it")
            run.worker = None
            run.checked = time.monotonic()
            return None
        return None if code is None else _outcome(run.directory, code)

    def _check_busy(self, run: ActiveRun, slot: Slot) -> RunOutcome | None:
        """Return the outcome of a run that another process has. Start it here if that process ended without finishing it."""
        if time.monotonic() - run.checked < BUSY_POLL_S:
            return None
        run.checked = time.monotonic()
        if run.directory.owner():
            return None
        if run.directory.result() is not None:
            return RunOutcome(run.directory)
        if run.directory.status().get("state") == FAILED:
            return _outcome(run.directory, 1)
        if self._stopping:
            return _outcome(run.directory, EXIT_INTERRUPTED)
        run.worker = self._start_worker(run.directory, slot)
        return None

    def _end(self, outcome: RunOutcome) -> None:
        self.outcomes.append(outcome)
        if not (outcome.disk_full and self.disk_full):  # one message for all
            self.observer.run_ended(outcome)
        self.disk_full |= outcome.disk_full


def make_slots(count: int, device: str, runs_per_gpu: int = 0) -> list[Slot]:
    """Divide the cores and GPUs of this machine, or of this Slurm job, among runs.

    Args:
        count: number of runs at a time; 0: one per core, or `runs_per_gpu` per GPU for runs on GPUs.
        device: 'cuda': the runs share the GPUs in turn; anything else, such as 'cuda:1': CUDA_VISIBLE_DEVICES is not set.
        runs_per_gpu: largest number of runs that share a GPU; 0: one, or no limit if `count` is given.
    """
    cores = own_cores()
    gpus = list_gpus() if device == "cuda" else []
    if not count:
        count = min(len(gpus) * max(runs_per_gpu, 1), len(cores)) if gpus else len(cores)
    elif gpus and runs_per_gpu:
        count = min(count, len(gpus) * runs_per_gpu)
    cores_per_run = len(cores) // count
    core_sets: list[frozenset[int] | None]
    if cores_per_run == 0 or not hasattr(os, "sched_setaffinity"):
        core_sets = [None] * count
    else:
        core_sets = [frozenset(cores[i * cores_per_run : (i + 1) * cores_per_run]) for i in range(count)]
    return [Slot(core_set, gpus[i % len(gpus)] if gpus else "") for i, core_set in enumerate(core_sets)]


def own_cores() -> list[int]:
    """Return the cores that this process may use, by number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def list_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Asks the driver's own tool, nvidia-smi, not torch. In the place of a GPU that is partitioned (MIG) stand its instances: CUDA
    would use only the first of them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    try:
        process = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus: list[list[str]] = []  # of each GPU: its name, then its instances
    for line in process.stdout.splitlines() if process.returncode == 0 else []:
        if match := re.match(r"GPU \d+: .*\(UUID: (\S+)\)", line):
            gpus.append([match[1]])
        elif match := re.match(r"\s+MIG .*\(UUID: (\S+)\)", line):
            gpus[-1].append(match[1])
    return [name for names in gpus for name in names[1:] or names]


def _outcome(directory: RunDirectory, code: int) -> RunOutcome:
    """Return the outcome of a run whose worker has ended. Write it into status.json if the run could not do so itself.

    Args:
        directory: the run's directory.
        code: exit code of the worker, negative for a signal.
    """
    if code == 0 and directory.result() is not None:
        return RunOutcome(directory)
    if code == EXIT_INTERRUPTED:
        pruned = directory.pruned()
        return RunOutcome(directory, f"pruned: {pruned}" if pruned else "interrupted at a checkpoint")
    if not directory.config.exists():
        return RunOutcome(directory, REMOVED, failed=True)
    status = directory.status()
    recorded = status.get("state")
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # so early that the worker had no signal handlers yet
        _record(directory, INTERRUPTED)
        return RunOutcome(directory, "interrupted before it began")
    if code == DISK_FULL:
        error = str(DiskFull(directory.path.parent, "the disk is full, over quota or read-only"))
        if recorded != FAILED:
            _record(directory, FAILED, error=error)
        return RunOutcome(directory, error, failed=True, disk_full=True)
    error = status.get("error") or next(iter(directory.last_lines(1)), "no error message")
    if code < 0:
        error = f"killed by {signal_name(-code)}"
    elif recorded == RUNNING:
        error = f"ended with exit code {code} without an error message"
    if recorded != FAILED:
        _record(directory, FAILED, error=error)
    return RunOutcome(directory, error, failed=True)


def _record(directory: RunDirectory, state: str, **entries: str) -> None:
    """Write the state of a run, if its directory can be written: no run may end the others."""
    with contextlib.suppress(OSError):
        directory.set_status_from_outside(state, **entries)
