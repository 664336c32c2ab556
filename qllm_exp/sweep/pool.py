"""Runs in processes of their own, some at a time, each on its own cores and GPU. One that fails stops no other.

Used on this machine for a whole sweep, and within an allocation of a cluster for the runs packed into it.
"""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qllm_exp.errors import UserError
from qllm_exp.experiment import BUSY, INTERRUPTED
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.fork_server import ForkServer, Worker

POLL_S = 0.1
BUSY_S = 1.0  # seconds between looks at a run that another process has


@dataclass(frozen=True)
class Slot:
    """Where one run at a time goes: the cores it is kept to (None: any), and its GPU (as CUDA_VISIBLE_DEVICES names it)."""

    cores: frozenset[int] | None = None
    gpu: str = ""


@dataclass(frozen=True)
class Ended:
    """How one run ended. `error` is empty when it finished. `failed`: it ended with an error, rather than being stopped."""

    directory: RunDirectory
    error: str = ""
    failed: bool = False


@dataclass
class Job:
    """A run in progress. `process` is None while another process has it."""

    directory: RunDirectory
    process: Worker | None
    looked: float = 0.0


class Observer(Protocol):
    """Is told what happens."""

    def show(self, jobs: Sequence[Job]) -> None:
        """Called several times a second."""

    def ended(self, one: Ended) -> None: ...


class Pool:
    """Runs some folders, as many at a time as there are slots.

    Args:
        create: makes a folder ready, just before its run starts.
        may_start: asked before each start; False leaves the rest alone.
    """

    def __init__(
        self,
        directories: Sequence[RunDirectory],
        slots: Sequence[Slot],
        observer: Observer,
        create: Callable[[RunDirectory], None] = lambda directory: None,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        self.waiting, self.slots, self.observer = deque(directories), slots, observer
        self.create, self.may_start = create, may_start
        self.jobs: dict[int, Job] = {}
        self.ended: list[Ended] = []
        self.not_started: list[RunDirectory] = []  # since `may_start` said so
        self._fork_server: ForkServer | None = None
        self._stopping = False
        self.stop_asked = False  # set it, e.g. in a signal's handler, to have `stop` called

    def run(self) -> list[Ended]:
        """Run them all and say how each ended."""
        self._run()
        self._close()
        return self.ended

    def _run(self) -> None:
        while self.waiting or self.jobs:
            if self.stop_asked:
                self.stop_asked = False
                self.stop()
            for index in range(len(self.slots)):
                if index not in self.jobs and self.waiting:
                    self._next(index)
            for index, job in list(self.jobs.items()):
                one = self._look(job, self.slots[index])
                if one is not None:
                    del self.jobs[index]
                    self._end(one)
            self.observer.show(list(self.jobs.values()))
            if self.waiting or self.jobs:
                self._rest()

    def stop(self) -> None:
        """Start no more, and ask what runs to stop at a checkpoint. Runs of other processes are left to them."""
        self._stopping = True
        self.waiting.clear()
        self.jobs = {index: job for index, job in self.jobs.items() if job.process is not None}
        for job in self.jobs.values():
            if job.process is not None:
                job.process.terminate()

    def wait(self) -> None:
        """Return once every process has ended."""
        for job in self.jobs.values():
            if job.process is not None:
                job.process.wait()
                while job.process.lost and job.directory.owner():  # it goes on to its checkpoint without its parent
                    time.sleep(POLL_S)
        self._close()

    def kill(self) -> None:
        """End every process at once."""
        for job in self.jobs.values():
            if job.process is not None:
                job.process.kill()
        self.wait()

    def _close(self) -> None:
        if self._fork_server is not None:
            self._fork_server.close()

    def _rest(self) -> None:
        """Wait until a process ends, for a moment at most."""
        if self._fork_server is not None and self._fork_server.alive:
            self._fork_server.listen(POLL_S)
        else:
            time.sleep(POLL_S)

    def _next(self, index: int) -> None:
        if not self.may_start():
            self.not_started += self.waiting
            self.waiting.clear()
            return
        directory = self.waiting.popleft()
        if directory.stop_request.exists():
            self._end(Ended(directory, "not started, as was asked"))
            return
        self.create(directory)
        self.jobs[index] = self._started(directory, self.slots[index])

    def _started(self, directory: RunDirectory, slot: Slot) -> Job:
        """Start a run, or wait for the process that has it."""
        if directory.owner():
            return Job(directory, None, time.monotonic())
        return Job(directory, self._start(directory, slot))

    def _start(self, directory: RunDirectory, slot: Slot) -> Worker:
        if self._fork_server is not None and not self._fork_server.alive:
            if not self._fork_server.pids:
                raise UserError(
                    "No run could be started: the process that starts them ended at once. What it said is above."
                )
            self._close()
            self._fork_server = None
        if self._fork_server is None:
            self._fork_server = ForkServer()
        return self._fork_server.start(directory, slot.cores, slot.gpu)

    def _look(self, job: Job, slot: Slot) -> Ended | None:
        """How a job ended, None while it goes on."""
        if job.process is None:
            return self._look_at_anothers(job, slot)
        code = job.process.poll()
        if code == BUSY:
            if self._stopping and not job.process.lost:
                return Ended(job.directory, "left to the process that has it")
            job.process, job.looked = None, time.monotonic()
            return None
        return None if code is None else _ending(job.directory, code)

    def _look_at_anothers(self, job: Job, slot: Slot) -> Ended | None:
        if time.monotonic() - job.looked < BUSY_S:
            return None
        job.looked = time.monotonic()
        if job.directory.owner():
            return None
        if job.directory.result() is not None:
            return Ended(job.directory)
        if job.directory.status().get("state") == "failed":
            return _ending(job.directory, 1)
        if self._stopping:
            return _ending(job.directory, INTERRUPTED)
        job.process = self._start(job.directory, slot)
        return None

    def _end(self, one: Ended) -> None:
        self.ended.append(one)
        self.observer.ended(one)


def slots(count: int, device: str) -> list[Slot]:
    """Slots for this machine or allocation: a core each when there are enough of them, and the GPUs in turn.

    Args:
        count: how many; 0: one per core that this process may use, or one per GPU for runs on GPUs.
        device: of the runs; 'cuda' hands the GPUs round, 'cuda:1' leaves them as they are.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cards = gpus() if device == "cuda" else []
    count = count or (min(len(cards), len(cores)) if cards else len(cores))
    share = len(cores) // count
    own: list[frozenset[int] | None]
    if share == 0 or not hasattr(os, "sched_setaffinity"):
        own = [None] * count
    else:
        own = [frozenset(cores[i * share : (i + 1) * share]) for i in range(count)]
    return [Slot(one, cards[i % len(cards)] if cards else "") for i, one in enumerate(own)]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. LanguageModel the driver's tool, not torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one and one != "-1"]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in lines))]


def _ending(directory: RunDirectory, code: int) -> Ended:
    if code == 0:
        return Ended(directory)
    status = directory.status()
    said = status.get("state")
    if code == INTERRUPTED:
        return Ended(directory, "stopped at a checkpoint")
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):  # so early that it did not yet listen
        directory.set_status_of_another("interrupted")
        return Ended(directory, "stopped before it began")
    error = status.get("error") or next(iter(directory.last_lines(1)), "no message")
    if code < 0:
        error = f"killed by {signal.Signals(-code).name}"
    elif said == "running":
        error = f"ended with exit code {code} without a word"
    if said != "failed":
        directory.set_status_of_another("failed", error=error)
    return Ended(directory, error, failed=True)
