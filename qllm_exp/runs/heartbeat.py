"""Background thread of a run: refreshes status.json and polls for a stop request."""

import contextlib
import threading
from collections.abc import Callable

from qllm_exp.runs.run_directory import RunDirectory

HEARTBEAT_S = 5.0  # seconds between refreshes of the status file


class Heartbeat:
    """Refreshes the status file every HEARTBEAT_S seconds, whatever the run is doing, until it is closed.

    Args:
        directory: directory of the run.
        on_stop_request: called every HEARTBEAT_S seconds while the directory contains a stop request, or if it was removed.
    """

    def __init__(self, directory: RunDirectory, on_stop_request: Callable[[], None]) -> None:
        self._directory, self._on_stop_request = directory, on_stop_request
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a full disk: the run itself fails on it too, and reports it
                if self._directory.was_removed():  # another run may have its place: nothing is written
                    self._on_stop_request()
                    continue
                self._directory.refresh_status()
            if self._directory.stop_request.exists():
                self._on_stop_request()

    def close(self) -> None:
        """Stop the thread, and return when it has ended."""
        self._closed.set()
        self._thread.join()
