"""TODO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qllm_exp.config.device import DeviceResolver
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.pool import Ended


class Launcher(Protocol):
    """Where runs are run."""

    @property
    def waits(self) -> bool:
        """Whether `start` returns only when the runs have ended."""

    def options(self) -> dict[str, Any]:
        """For the sweep's record: 'name' and what it was made with."""

    def settle(self) -> DeviceResolver:
        """From a device as configured to that of the runs. UserError where nothing can be started."""

    def at_a_time(self, device: str) -> int:
        """Runs at a time, at most."""

    def start(self, sweep: Sweep, work: "Work") -> list[Ended]:
        """Start runs. How those ended that did before this returns."""


@dataclass(frozen=True)
class Work:
    """Runs to start.

    Attributes:
        directories: of these runs. create: makes a folder ready, before its run starts.
        running, queued: runs of the same sweep that somebody else has. device: 'cuda' when GPUs are to be handed round.
    """

    directories: Sequence[RunDirectory]
    create: Callable[[RunDirectory], None] = lambda directory: None
    running: Sequence[RunDirectory] = ()
    queued: Sequence[RunDirectory] = ()
    device: str = "cpu"
