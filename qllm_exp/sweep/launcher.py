"""The interface of launchers: where the runs of a sweep take place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qllm_exp.config.device import DeviceResolver
from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import FailureLimit, Sweep
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.utils.memory import Memory

NEXT_GROUP = "QLLM_EXP_NEXT_GROUP"  # environment variable of a command that a launcher runs as `Work.next_command`


class Launcher(Protocol):
    """Starts the runs of a sweep."""

    @property
    def waits(self) -> bool:
        """Whether `start` returns only when the runs have ended."""

    def options(self) -> dict[str, Any]:
        """Return the launcher's 'name' and its options, for the record of the sweep."""

    def device_resolver(self) -> DeviceResolver:
        """Return the function that maps a configured device to the device of the machine that will train the run.

        Raises:
            UserError: nothing can be started from here.
        """

    def memory(self) -> Memory | None:
        """Return the memory for a run, if it is the only one where it trains; None if it is not known."""

    def max_parallel(self, device: str) -> int:
        """Return the largest number of runs at a time.

        Args:
            device: 'cuda' if the runs share the GPUs, else 'cpu'.
        """

    def start(self, sweep: Sweep, work: "Work") -> list[RunOutcome]:
        """Start runs, and return the outcomes of those that have ended by then.

        Args:
            sweep: the sweep that the runs belong to.
            work: the runs.
        """


@dataclass(frozen=True)
class Work:
    """Runs to start.

    Attributes:
        directories: directories of the runs to start.
        failures: counts the failed runs; after its limit no further run starts.
        create: called with the directory of a run before it starts; writes its configuration.
        running: runs of the same sweep that another process runs.
        queued: runs of the same sweep that are in Slurm's queue.
        device: 'cuda' if the runs share the GPUs, else 'cpu'.
        statuses: content of status.json of the runs to start when they were planned; {} if there was none.
        next_command: arguments of the command that a launcher which does not wait runs once all of these runs have ended; ()
            for none.
    """

    directories: Sequence[RunDirectory]
    failures: FailureLimit
    create: Callable[[RunDirectory], None] = lambda directory: None
    running: Sequence[RunDirectory] = ()
    queued: Sequence[RunDirectory] = ()
    device: str = "cpu"
    statuses: Mapping[Path, dict[str, Any]] = field(default_factory=dict)
    next_command: Sequence[str] = ()


def check_option(launcher: Launcher, name: str, is_valid: bool, allowed: str) -> None:
    """Raise UserError if the value of an option of a launcher is not valid.

    Args:
        launcher: the launcher.
        name: name of the option.
        is_valid: whether its value is valid.
        allowed: the allowed values, for the message.
    """
    if not is_valid:
        raise UserError(f"hydra.launcher.{name}={getattr(launcher, name)!r} is not allowed. Allowed: {allowed}.")


SHARES = "0 (the number of runs at a time is fixed), or a share up to 1, e.g. 0.9"


def is_share(value: Any) -> bool:
    """Return True for a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def is_integer_from(value: Any, low: int) -> bool:
    """Return True for a whole number that is not below `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
