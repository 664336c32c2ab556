"""The folder of one run. Everything else (tables, plots, dashboards) can be made again from such folders alone.

config.yaml     the configuration as run          versions.json   package, commit, libraries, machine
metrics.jsonl   rows, append-only                  status.json     state and heartbeat
tfcaf.json      the function used, if any          result.json     final figures; there only when the run is finished
policy.pt       parameters, last and best          checkpoint/     to go on from; gone when the run is finished
log.txt         what happened, as text             console.txt     what its process printed, in a sweep
wandb.json      what Weights & Biases has of it     wandb/        the log of what sends it (both with tracking=wandb only)
stop            there when the run is asked to stop at a checkpoint, or not to be started
"""

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.config.load import load_run, not_identity, to_dict
from qllm_exp.errors import UserError
from qllm_exp.utils.files import flock, write_atomically

CONFIG = "config.yaml"
NOT_IDENTITY = "# not part of what defines the run: "  # how the first line of config.yaml begins; keys follow
HEARTBEAT_LIMIT_S = 60.0  # a running run that gave no sign of life for so many seconds has died


class Busy(UserError):
    """The folder's run is being run by another process."""


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._metrics: int | None = None
        self._status: dict[str, Any] = {}
        self._status_lock = threading.Lock()

    # Made once, before the run starts

    def create(self, run: schema.RunConfig, tfcaf: str | None) -> None:
        """Make the folder with the run's configuration and, if it has one, its function (JSON text).

        A folder that is there already keeps what it has: its name says that it is the same run. Raises UserError when
        the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if tfcaf is not None and not self.tfcaf.exists():
                write_atomically(self.tfcaf, tfcaf)
            if not self.config.exists():
                text = OmegaConf.to_yaml(OmegaConf.create(to_dict(run)))
                write_atomically(self.config, f"{NOT_IDENTITY}{' '.join(not_identity(run))}\n{text}")
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error.strerror}. Choose another with dir=..."
            ) from error

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def tfcaf(self) -> Path:
        return self.path / "tfcaf.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def console(self) -> Path:
        return self.path / "console.txt"

    @property
    def stop_request(self) -> Path:
        return self.path / "stop"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def policy(self) -> Path:
        return self.path / "policy.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_config(self) -> schema.RunConfig:
        """The run's configuration; UserError when the folder has none."""
        if not self.config.exists():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml.")
        loaded = OmegaConf.load(self.config)
        return load_run(OmegaConf.to_container(loaded))  # type: ignore[arg-type]

    # While it runs

    def lock(self) -> None:
        """Claim the folder for this process; Busy when another one has it. Freed when the process ends."""
        owner = self.owner(wait_s=1.0)
        if owner:
            raise Busy(f"{self.path} is being run already, by {owner}.")
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            os.close(self._lock)
            self._lock = None
            raise Busy(f"{self.path} is being run already, by another process.")
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def owner(self, wait_s: float = 0.0) -> str:
        """Who runs it now, in words; '' when nobody does. On another machine: who gave a sign of life a short while ago.

        Args:
            wait_s: ask for so long, since one who asks holds the lock for a moment.
        """
        end = time.monotonic() + wait_s
        while (free := self._is_free()) is False:
            if time.monotonic() >= end:
                return (self.path / ".lock").read_text() or "another process"
            time.sleep(0.02)
        status = self.status()
        told = free and status.get("host", "") == socket.gethostname()  # the lock says all about this machine
        if status.get("state") == "running" and not told and self.silent_s(status) < HEARTBEAT_LIMIT_S:
            return f"process {status.get('pid')} on {status.get('host')}"
        return ""

    def _is_free(self) -> bool | None:
        """Whether no process has the lock; None where there are no locks."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return True
        try:
            return flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(handle)

    @staticmethod
    def silent_s(status: dict[str, Any]) -> float:
        """Seconds since the last sign of life in a status."""
        return max(0.0, time.time() - float(status.get("heartbeat") or 0.0))

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
        """state: new | queued | running | finished | interrupted | failed."""
        with self._status_lock:
            self._status |= {**more, "state": state, "pid": os.getpid(), "host": socket.gethostname()}
        self.renew_status()

    def set_status_of_another(self, state: str, **more: Any) -> None:
        """The same for a run that this process does not run; its figures stay."""
        text = json.dumps(self.status() | more | {"state": state}, indent=1) + "\n"
        write_atomically(self.path / "status.json", text)

    def renew_status(self) -> None:
        """Write the status file with the time of now."""
        with self._status_lock:
            self._status["heartbeat"] = time.time()
            text = json.dumps(self._status, indent=1) + "\n"
        write_atomically(self.path / "status.json", text)

    def note(self, **figures: Any) -> None:
        """Figures for the status file, written with its next renewal."""
        with self._status_lock:
            self._status |= figures

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
        return _read_json(self.path / "result.json") or None

    def finish(self, result: dict[str, Any]) -> None:
        write_atomically(self.path / "result.json", json.dumps(result, indent=1) + "\n")

    def last_lines(self, count: int) -> list[str]:
        """The last lines of what the run's process printed, or of its log; blank ones left out."""
        for path in (self.console, self.log):
            lines = tail(path, count)
            if lines:
                return lines
        return []


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a text file that are not blank; none when there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    said = [line for line in lines if line.strip()]
    return said[max(0, len(said) - count) :]


def _read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is no such file or it says something else."""
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
