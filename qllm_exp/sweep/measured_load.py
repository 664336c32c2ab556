"""How many runs fit side by side, by what the runs in progress are measured to use.

A run that waits for its simulator leaves cores and its GPU idle, and a small run does not fill a GPU. So further runs start beside
them while there is room. Only starts follow the load: a run that has started stays.
"""

import csv
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from qllm_exp.sweep.pool import Slot, own_cores
from qllm_exp.utils.memory import SLURM_JOB, available_memory

MAX_FACTOR = 8  # runs at a time at most, as a multiple of the number at the beginning
SETTLE_S = (
    20.0  # seconds after the last start or end, before which use says little: runs build environments and fill buffers
)
WINDOW_S = 10.0  # seconds of a measurement, several rounds of episodes and updates of any environment here
QUERY_S = 2.0  # seconds between queries of nvidia-smi during a measurement
ANSWER_S = 10.0  # for its answer, which the pool waits for; it starts slowly where the driver is not kept loaded

Uses = Mapping[str, float]  # share of each resource that the runs use, by its name
Measure = Callable[[Sequence[int]], Uses | None]


class LoadLimit:
    """The number of runs that may train at a time.

    Args:
        initial: the number that may in any case.
        share: share of the cores, of each GPU and of the memory that all runs together may use, from 0 to 1.
        measure: called several times a second with the process ids of the runs; returns what they used since it was first
            called with these ids, or None while it still measures.
        clock: returns the time in seconds.
    """

    def __init__(
        self, initial: int, share: float, measure: Measure, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.number = initial
        self._initial = initial
        self._share = share
        self._measure = measure
        self._clock = clock
        self._pids: frozenset[int] = frozenset()
        self._changed = clock()

    def update(self, pids: Sequence[int]) -> int:
        """Return the number of runs that may train at a time by now.

        Args:
            pids: process ids of the runs in progress.
        """
        if frozenset(pids) != self._pids:
            self._pids = frozenset(pids)
            self._changed = self._clock()
        if self._pids and self._clock() - self._changed >= SETTLE_S:
            uses = self._measure(sorted(self._pids))
            if uses is not None:
                self.number = self._fitting(len(self._pids), max(uses.values(), default=1.0))
        return self.number

    def _fitting(self, running: int, use: float) -> int:
        """Return how many runs fit.

        Twice as many as now at most: what further runs will use is an estimate, from those in progress.

        Args:
            running: number of runs in progress.
            use: share of the scarcest resource that they use.
        """
        fitting = int(running * self._share / max(use, 1e-3))
        return max(self._initial, min(fitting, 2 * running, MAX_FACTOR * self._initial))


class Meter:
    """Measures what runs use of this machine, or of this Slurm job.

    Args:
        gpus: the GPUs that the runs share, as CUDA_VISIBLE_DEVICES names them.
        cores: number of cores that they share.
        clock: returns the time in seconds.
    """

    def __init__(self, gpus: Sequence[str], cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._gpus = gpus
        self._cores = cores
        self._clock = clock
        self._pids: Sequence[int] = ()
        self._begun = 0.0
        self._cpu_s = 0.0
        self._gpu_uses: list[Uses] = []

    def __call__(self, pids: Sequence[int]) -> Uses | None:
        """Return the shares that the runs use, measured over WINDOW_S; None until then.

        A GPU that nvidia-smi does not report, such as an instance of a partitioned one, counts as full.

        Args:
            pids: process ids of the runs.
        """
        now = self._clock()
        if pids != self._pids or now - self._begun > 2 * WINDOW_S:  # others, or the last measurement was left off
            self._pids, self._begun, self._cpu_s, self._gpu_uses = pids, now, _cpu_s(pids), []
            return None
        if self._gpus and now - self._begun >= QUERY_S * len(self._gpu_uses):
            self._gpu_uses.append(gpu_uses(self._gpus))
        if now - self._begun < WINDOW_S:
            return None
        uses = {"cores": (_cpu_s(pids) - self._cpu_s) / (now - self._begun) / self._cores}
        for name in {name for sample in self._gpu_uses for name in sample}:
            uses[name] = sum(sample.get(name, 1.0) for sample in self._gpu_uses) / len(self._gpu_uses)
        memory = available_memory()
        if memory is not None:
            used = sum(_memory(pid) for pid in pids)
            size = memory.size if memory.place == SLURM_JOB else used + memory.size
            uses["memory"] = used / max(size, 1)
        self._pids = ()
        return uses


def follow_load(
    slots: Sequence[Slot], share: float, cores: int = 0
) -> tuple[list[Slot], Callable[[Sequence[int]], int] | None]:
    """Return slots for as many runs as may ever train at a time, and the limit of a pool that follows the measured load.

    Args:
        slots: resources of each run at the beginning.
        share: as of `LoadLimit`; 0: the number of runs is fixed, the slots are returned as they are, and no limit.
        cores: number of cores that the runs share; 0: those that this process may use.
    """
    if not share:
        return list(slots), None
    gpus = list(dict.fromkeys(slot.gpu for slot in slots if slot.gpu))
    limit = LoadLimit(len(slots), share, Meter(gpus, cores or len(own_cores())))
    shared = [Slot(None, slots[i % len(slots)].gpu) for i in range(MAX_FACTOR * len(slots))]  # any run on any core
    return shared, limit.update


def gpu_uses(gpus: Sequence[str]) -> Uses:
    """Return the use of each GPU and of its memory, by all processes; 1.0 where it is not known.

    Args:
        gpus: indices or UUIDs.
    """
    columns = "index,uuid,utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        output = ""
    uses = {f"GPU {gpu}": 1.0 for gpu in gpus}
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        for gpu in set(row[:2]) & set(gpus):
            try:
                busy, used, total = map(float, row[2:5])
            except ValueError:  # '[N/A]', of a partitioned GPU
                continue
            uses[f"GPU {gpu}"] = max(busy / 100, used / total)
    return uses


def _processes(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started, such as the workers of a simulator; [] if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds of processes and of all that they have started."""
    total = 0.0
    for process in [process for pid in pids for process in _processes(pid)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(pid: int) -> int:
    """Return the memory that a process and all that it has started have for themselves, bytes."""
    total = 0
    for process in _processes(pid):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total
