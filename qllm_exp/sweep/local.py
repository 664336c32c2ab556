"""A sweep on this machine."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from qllm_exp.experiment import INTERRUPTED
from qllm_exp.preparation import Settle, settle_device
from qllm_exp.sweep.display import Display
from qllm_exp.sweep.pool import Ended, Pool, slots
from qllm_exp.sweep.record import Sweep
from qllm_exp.tracking.run_dir import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Local:
    """Runs on this machine, a process each.

    Attributes:
        n_jobs: runs at a time; 0: one per core, or one per GPU for runs on GPUs.
    """

    n_jobs: int = 0
    waits = True  # `start` returns when the runs have ended

    def options(self) -> dict[str, Any]:
        return {"name": "local", "n_jobs": self.n_jobs}

    def settle(self) -> Settle:
        return settle_device

    def at_a_time(self, device: str) -> int:
        return len(slots(self.n_jobs, device))

    def start(
        self, sweep: Sweep, directories: Sequence[RunDirectory], device: str, create: Callable[[RunDirectory], None]
    ) -> list[Ended]:
        """Run them all and say how each ended. Exits with INTERRUPTED after Ctrl-C or SIGTERM, when every process has ended."""
        places = slots(self.n_jobs, device)
        display = Display(len(directories), len(places))
        pool = Pool(directories, places, _Counting(display, sweep), create, sweep.may_start)
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
    running = len(pool.jobs)
    log.info("stopping %d run%s at the next checkpoint (Ctrl-C again: at once)", running, "s" * (running != 1))
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
