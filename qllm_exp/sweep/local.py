"""A sweep on this machine."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.errors import UserError
from qllm_exp.experiment import INTERRUPTED
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.pool import Ended, Pool, slots
from qllm_exp.sweep.progress import Display
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Local:
    """Runs on this machine, a process each.

    Attributes:
        n_jobs: runs at a time; 0: one per core, or one per GPU for runs on GPUs.
    """

    n_jobs: int = 0
    waits = True  # `start` returns when the runs have ended

    def __post_init__(self) -> None:
        if not isinstance(self.n_jobs, int) or self.n_jobs < 0:
            raise UserError(f"hydra.launcher.n_jobs={self.n_jobs!r}: give a whole number; 0: one per core.")

    def options(self) -> dict[str, Any]:
        return {"name": "local", "n_jobs": self.n_jobs}

    def settle(self) -> DeviceResolver:
        return resolve_device

    def at_a_time(self, device: str) -> int:
        return len(slots(self.n_jobs, device))

    def start(self, sweep: Sweep, work: Work) -> list[Ended]:
        """Run them all, with those that another process runs already, and say how each ended.

        Exits with INTERRUPTED after Ctrl-C or SIGTERM, when every process has ended.
        """
        directories = [*work.directories, *work.running]
        places = slots(self.n_jobs, work.device)
        if work.queued:
            log.info("  %d of the runs are left to Slurm, which has them in its queue", len(work.queued))
        display = Display(len(directories), len(places))
        pool = Pool(directories, places, _Counting(display, sweep), work.create, sweep.may_start)
        with sweep.held(), _signals_interrupt():
            try:
                return pool.run()
            except KeyboardInterrupt:
                display.close()
                _stop(pool)
                log.info("stopped; the same command goes on from the checkpoints")
                sys.exit(INTERRUPTED)
            finally:
                display.close()


class _Counting:
    """A display that also notes failures in the sweep's folder."""

    def __init__(self, display: Display, sweep: Sweep) -> None:
        self.show, self._display, self._sweep = display.show, display, sweep

    def ended(self, one: Ended) -> None:
        if one.failed:
            self._sweep.note_failure(one.directory.path.name)
        self._display.ended(one)


def _stop(pool: Pool) -> None:
    log.info("stopping %s at the next checkpoint (Ctrl-C again: at once)", count(len(pool.jobs), "run"))
    try:
        pool.stop()
        pool.wait()
    except KeyboardInterrupt:
        pool.kill()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does, unless they are ignored (nohup)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
