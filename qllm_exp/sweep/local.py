"""The launcher for this machine."""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.experiment import INTERRUPTED as EXIT_INTERRUPTED
from qllm_exp.runs.sweep_directory import FailureLimit, Sweep
from qllm_exp.sweep.launcher import SHARES, Work, check_option, is_integer_from, is_share
from qllm_exp.sweep.measured_load import follow_load
from qllm_exp.sweep.mps import mps_daemons
from qllm_exp.sweep.pool import ActiveRun, Pool, RunOutcome, make_slots
from qllm_exp.sweep.progress import Display
from qllm_exp.sweep.pruning import Pruner
from qllm_exp.utils.memory import Memory, available_memory
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

MAX_LINES = 16  # of runs on a terminal, where the number of runs at a time follows the load


@dataclass(frozen=True)
class Local:
    """Trains runs on this machine, each in its own process.

    Attributes:
        n_jobs: number of runs at a time; 0: one per core, or `runs_per_gpu` per GPU for runs on GPUs.
        runs_per_gpu: largest number of runs that share a GPU; 0: one, or no limit if `n_jobs` is given.
        mps: runs share a GPU through NVIDIA's MPS.
        max_load: share of the cores, of each GPU and of the memory up to which further runs start; 0: the number of runs is fixed.
        waits: `start` returns when the runs have ended.
    """

    n_jobs: int = 0
    runs_per_gpu: int = 0
    mps: bool = False
    max_load: float = 0
    waits = True

    def __post_init__(self) -> None:
        check_option(self, "n_jobs", is_integer_from(self.n_jobs, 0), "whole numbers from 0; 0: one run per core")
        check_option(self, "runs_per_gpu", is_integer_from(self.runs_per_gpu, 0), "whole numbers from 0; 0: one run")
        check_option(self, "mps", isinstance(self.mps, bool), "true, false")
        check_option(self, "max_load", is_share(self.max_load), SHARES)

    def options(self) -> dict[str, Any]:
        """Return the launcher's 'name' and its options, for the record of the sweep."""
        return {"name": "local", **asdict(self)}

    def device_resolver(self) -> DeviceResolver:
        """Return the function that maps a configured device to one of this machine."""
        return resolve_device

    def memory(self) -> Memory | None:
        """Return the memory that this machine has for a run, if no other trains at the same time."""
        return available_memory()

    def max_parallel(self, device: str) -> int:
        """Return the number of runs at a time, for runs on 'cuda' or 'cpu'."""
        return len(make_slots(self.n_jobs, device, self.runs_per_gpu))

    def start(self, sweep: Sweep, work: Work) -> list[RunOutcome]:
        """Train the runs, wait for those that another process trains already, and return all outcomes.

        After Ctrl-C or SIGTERM, exits with INTERRUPTED once every worker has stopped at a checkpoint.

        Args:
            sweep: the sweep that the runs belong to.
            work: the runs.
        """
        directories = [*work.directories, *work.running]
        initial = make_slots(self.n_jobs, work.device, self.runs_per_gpu)
        slots, limit = follow_load(initial, self.max_load)
        if work.queued:
            log.info("  %s in Slurm's queue, left to Slurm", count(len(work.queued), "run"))
        display = Display(len(directories), max(len(initial), min(len(slots), MAX_LINES)))
        pruner = Pruner.of(sweep)
        observer = _FailureMarker(display, work.failures)
        prune = pruner.update if pruner else None
        pool = Pool(directories, slots, observer, work.create, work.failures.may_start, prune, limit)
        with sweep.lock(), mps_daemons(slots, self.mps) as pool.slots, _signals_raise_interrupt():
            try:
                return pool.run()
            except KeyboardInterrupt:
                display.close()
                _stop(pool)
                log.info("interrupted; the same command resumes from the checkpoints")
                sys.exit(EXIT_INTERRUPTED)
            finally:
                display.close()


class _FailureMarker:
    """Observer of a pool: passes its events to a display, and marks failed runs in the sweep directory."""

    def __init__(self, display: Display, failures: FailureLimit) -> None:
        self._display = display
        self._failures = failures

    def show(self, active: Sequence[ActiveRun]) -> None:
        self._display.show(active)

    def run_ended(self, outcome: RunOutcome) -> None:
        if outcome.failed:
            self._failures.mark(outcome.directory.path.name)
        self._display.run_ended(outcome)


def _stop(pool: Pool) -> None:
    """Stop the workers at a checkpoint; after another Ctrl-C, at once."""
    log.info("stopping %s at the next checkpoint (press Ctrl-C again to stop at once)", count(len(pool.active), "run"))
    try:
        pool.stop()
        pool.wait()
    except KeyboardInterrupt:
        pool.kill()


@contextmanager
def _signals_raise_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. Ignored signals (nohup) stay ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
