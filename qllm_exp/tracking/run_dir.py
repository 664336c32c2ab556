"""The folder of one run. Everything else (tables, plots, dashboards) can be made again from such folders alone.

config.yaml     the configuration as run          versions.json   package, commit, libraries, machine
metrics.jsonl   rows, append-only                  status.json     state and heartbeat
tfcaf.json      the function used, if any          result.json     final figures; there only when the run is finished
policy.pt       parameters, last and best          checkpoint/     to go on from; gone when the run is finished
log.txt         what happened, as text
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp import config as configuration
from qllm_exp import schema
from qllm_exp.errors import UserError
from qllm_exp.files import write_atomically

HEARTBEAT_S = 5.0  # seconds between updates of the status file


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._metrics: int | None = None
        self._status: dict[str, Any] = {}
        self._last_beat = 0.0

    # Made once, before the run starts

    def create(self, run: schema.Run, tfcaf: str | None) -> None:
        """Make the folder with the run's configuration and, if it has one, its function (JSON text).

        A folder that is there already keeps what it has: its name says that it is the same run. Raises UserError when
        the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if tfcaf is not None and not self.tfcaf.exists():
                write_atomically(self.tfcaf, tfcaf)
            if not self.config.exists():
                write_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(configuration.to_dict(run))))
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error.strerror}. Choose another with dir=..."
            ) from error

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def tfcaf(self) -> Path:
        return self.path / "tfcaf.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def policy(self) -> Path:
        return self.path / "policy.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_config(self) -> schema.Run:
        """The run's configuration; UserError when the folder has none."""
        if not self.config.exists():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml.")
        loaded = OmegaConf.load(self.config)
        return configuration.load(OmegaConf.to_container(loaded))  # type: ignore[arg-type]

    # While it runs

    def lock(self) -> None:
        """Claim the folder for this process; UserError when another one has it. Freed when the process ends."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock, 200, 0).decode() or "another process"
            os.close(self._lock)
            self._lock = None
            raise UserError(f"{self.path} is being run already, by {owner}.") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def open_metrics(self, offset: int) -> None:
        """Open the metrics file for appending, without what was written after the checkpoint that is gone on from."""
        self._metrics = os.open(self.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if os.fstat(self._metrics).st_size > offset:
            os.ftruncate(self._metrics, offset)

    def append(self, row: dict[str, Any]) -> int:
        """Append one row; returns the size of the file."""
        assert self._metrics is not None
        line = memoryview((json.dumps(row) + "\n").encode())
        while line:
            line = line[os.write(self._metrics, line) :]
        return os.lseek(self._metrics, 0, os.SEEK_END)

    def set_status(self, state: str, **more: Any) -> None:
        """state: running | finished | interrupted | failed."""
        self._status = {**self._status, **more, "state": state, "pid": os.getpid(), "host": socket.gethostname()}
        self._status["heartbeat"] = time.time()
        self._last_beat = time.monotonic()
        write_atomically(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")

    def beat(self, **figures: Any) -> None:
        """Renew the heartbeat, every few seconds at most."""
        if time.monotonic() - self._last_beat >= HEARTBEAT_S:
            self.set_status("running", **figures)

    def close(self) -> None:
        for handle in (self._metrics, self._lock):
            if handle is not None:
                os.close(handle)
        self._metrics = self._lock = None

    # Read by anyone

    def status(self) -> dict[str, Any]:
        return _read_json(self.path / "status.json")

    def result(self) -> dict[str, Any] | None:
        """The final figures, None while the run is not finished."""
        path = self.path / "result.json"
        return _read_json(path) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        write_atomically(self.path / "result.json", json.dumps(result, indent=1) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return read
