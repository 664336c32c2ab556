"""The sign of life of a run, written beside its work, and the ear for a request to stop it from elsewhere."""

import contextlib
import threading
from collections.abc import Callable

from qllm_exp.runs.run_directory import RunDirectory

HEARTBEAT_S = 5.0  # seconds between updates of the status file


class Heartbeat:
    """Renews the status file every few seconds, whatever the run is busy with, until it is closed.

    Args:
        asked_to_stop: called once someone has put a request to stop into the run's folder.
    """

    def __init__(self, directory: RunDirectory, asked_to_stop: Callable[[], None]) -> None:
        self._directory, self._asked_to_stop = directory, asked_to_stop
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a full disk; the run itself meets it too, and says so
                self._directory.renew_status()
            if self._directory.stop_request.exists():
                self._asked_to_stop()

    def close(self) -> None:
        """Return once no more will be written."""
        self._end.set()
        self._thread.join()
