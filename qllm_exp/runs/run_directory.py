"""The directory of one run, from which everything else (tables, figures, dashboards) can be rebuilt.

A run is its directory. The configuration is written to config.yaml, and the process that trains reads it from there and validates
it again. So any process can start the run, on this machine, on a cluster node or next week, and it is always the same run.

config.yaml     the configuration as run          versions.json   software and hardware
metrics.jsonl   metrics rows, append-only         status.json     state and heartbeat
tfcaf.json      the stored function, if any       result.json     final results; exists only when the run is finished
policy.pt       parameters, last and best         checkpoint/     to resume from; removed when the run is finished
log.txt         log of the run                    console.txt     output of the run's process, in a sweep
wandb.json      state of the upload to W&B        wandb/          log of the upload (both with tracking=wandb only)
stop            exists while the run is requested to stop at a checkpoint, or not to start; of a pruned run it holds the decision
pruned.json     that decision, once the run was resumed in spite of it
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.config.load import load_run, non_identifying_keys, to_dict, with_older_defaults
from qllm_exp.errors import UserError
from qllm_exp.runs.config_reader import ConfigLoader
from qllm_exp.runs.json_files import read_object, write_object
from qllm_exp.runs.metrics import MetricsRow, nan_for_null
from qllm_exp.utils.files import (
    file_system_time_ns,
    flock,
    is_disk_full,
    nearest_path,
    read_regular_file,
    strict_json,
    write_atomically,
)
from qllm_exp.utils.text import excerpt, inert_lines

CONFIG = "config.yaml"
NOT_IDENTITY = "# not part of what defines the run: "  # start of the first line of config.yaml; keys follow
_STATUS_NUMBERS = ("heartbeat", "env_step", "checkpoint_step", "total_steps", "steps_per_s", "return")
_MAX_CONFIG_BYTES = 2**20
HEARTBEAT_LIMIT_S = 60.0  # a running run whose heartbeat is older than this is dead
WATCH_S = 12.0  # seconds of watching, longer than two heartbeats, before a run of another machine is taken over
# By folder: when the clock of its file system was read, and that clock minus the monotonic one.
_CLOCKS: dict[Path, tuple[float, float]] = {}
_MAX_CLOCK_DIFFERENCE_S = 900.0  # of two machines; if the file of a heartbeat is younger by more, it is a copy


class Busy(UserError):
    """Another process is running the run of this directory."""


class DiskFull(UserError):
    """A folder cannot be written: its disk is full, over quota or read-only.

    Args:
        folder: the folder.
        reason: what the system says, e.g. 'No space left on device'.
    """

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"Cannot write to {folder}: {reason}. Free some space and run the same command again to resume from the last "
            "checkpoint, or choose another location with dir=..."
        )


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._metrics: int | None = None
        self._status: dict[str, Any] = {}
        self._status_lock = threading.Lock()

    # Paths

    @property
    def config(self) -> Path:
        """The configuration of the run."""
        return self.path / CONFIG

    @property
    def tfcaf(self) -> Path:
        """The stored credit-assignment function, if the mixer has one."""
        return self.path / "tfcaf.json"

    @property
    def log(self) -> Path:
        """Log of the run."""
        return self.path / "log.txt"

    @property
    def console(self) -> Path:
        """Output of the run's process, in a sweep."""
        return self.path / "console.txt"

    @property
    def stop_request(self) -> Path:
        """A file that exists while the run is requested to stop, or not to start. It is empty, unless the run is pruned."""
        return self.path / "stop"

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "checkpoint"

    @property
    def policy(self) -> Path:
        """Parameters of the policy, last and best."""
        return self.path / "policy.pt"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    @property
    def versions(self) -> Path:
        """Versions of the software and the machine."""
        return self.path / "versions.json"

    @property
    def result_path(self) -> Path:
        """The final results; the file exists only when the run is finished."""
        return self.path / "result.json"

    @property
    def _status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def _overruled_path(self) -> Path:
        return self.path / "pruned.json"

    # Before the run starts

    def create(self, run: schema.RunConfig, tfcaf: str | None) -> None:
        """Create the directory with the run's configuration and function.

        Files that exist already are kept: a directory of the same name belongs to the same run.

        Args:
            run: configuration of the run.
            tfcaf: text of the stored function (JSON), None for a mixer without one.

        Raises:
            DiskFull: the disk takes no more data.
            UserError: the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if tfcaf is not None and not self.tfcaf.exists():
                write_atomically(self.tfcaf, tfcaf)
            if not self.config.exists():
                text = OmegaConf.to_yaml(OmegaConf.create(to_dict(run)))
                write_atomically(self.config, f"{NOT_IDENTITY}{' '.join(non_identifying_keys(run))}\n{text}")
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(self.path, str(error.strerror)) from error
            raise UserError(
                f"Cannot write the run directory {self.path}: {error.strerror}. Choose another location with dir=..."
            ) from error

    def read_config(self) -> schema.RunConfig:
        """Return the run's configuration, with what the run did in place of options that did not exist yet.

        Raises:
            UserError: the directory has no configuration, or an invalid one.
        """
        if not self.config.exists():
            raise UserError(f"{self.path} is not a run directory: it has no {CONFIG}.{nearest_path(self.path)}")
        return load_run(with_older_defaults(_read_plain_yaml(self.config)))

    # While it runs

    def lock(self) -> None:
        """Lock the directory for this process, until `close` or the end of the process.

        Raises:
            Busy: another process has it.
            OSError: the directory was removed, or its disk is full.
        """
        owner = self.owner(wait_s=1.0) or self._watch()
        if owner:
            raise Busy(f"{self.path} is already being run by {owner}.")
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        if flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            os.close(self._lock)
            self._lock = None
            raise Busy(f"{self.path} is already being run by another process.")
        with contextlib.suppress(OSError):  # only messages of other processes need the name of this one
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def was_removed(self) -> bool:
        """Return True if the directory that this process has locked was removed, even if another one has its name now."""
        if self._lock is None:
            return not self.config.exists()
        try:
            return not os.path.samestat(os.fstat(self._lock), os.stat(self.path / ".lock"))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError as error:
            if error.errno == errno.ESTALE:  # a network file system: another machine has removed it
                return True
            raise

    def owner(self, wait_s: float = 0.0) -> str:
        """Return the process that runs it now, e.g. 'process 12 on host'; '' if there is none.

        A process on another machine counts while its heartbeat is recent, since its lock may not be visible here.

        Args:
            wait_s: seconds to wait for a lock to be released; checking for an owner holds the lock for a moment.
        """
        deadline = time.monotonic() + wait_s
        while (unlocked := self._is_unlocked()) is False:
            if time.monotonic() >= deadline:
                with contextlib.suppress(FileNotFoundError):
                    return (self.path / ".lock").read_text() or "another process"
            time.sleep(0.02)
        status = self.status()
        on_this_machine = status.get("host", "") == socket.gethostname()
        if unlocked and on_this_machine:  # the lock is conclusive
            return ""
        if status.get("state") == "running" and self.heartbeat_age_s() < HEARTBEAT_LIMIT_S:
            return _process_of(status)
        return ""

    def _watch(self) -> str:
        """Return the process of another machine that refreshes the heartbeat while this process watches; '' if none does.

        Some file systems date a file by the clock of the machine that writes it. Where that clock is minutes behind, the
        heartbeat of a live run has an old date.
        """
        status = self.status()
        if status.get("state") != "running" or status.get("host", "") == socket.gethostname():
            return ""
        if self.heartbeat_age_s() > _MAX_CLOCK_DIFFERENCE_S + HEARTBEAT_LIMIT_S:
            return ""
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                file_system_time_ns(self.path)  # a file system that caches the directory reads it again
            latest = self.status()
            if latest.get("state") == "running" and latest.get("heartbeat") != status.get("heartbeat"):
                return _process_of(latest)
        return ""

    def _is_unlocked(self) -> bool | None:
        """Whether no process holds the lock; None if the file system does not support locks."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return True
        try:
            return flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(handle)

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the last heartbeat.

        The clock of the run's machine may differ from the clock here, so the date of the status file counts, compared with
        the date that a new file gets. A file that was copied has a later date; there the date that the run wrote counts.
        """
        now = self._now()
        heartbeat = float(self.status().get("heartbeat") or 0.0)
        try:
            date = self._status_path.stat().st_mtime
        except OSError:
            date = math.inf
        if date - heartbeat > _MAX_CLOCK_DIFFERENCE_S:
            now, date = time.time(), heartbeat
        return max(0.0, now - date)

    def _now(self) -> float:
        """Return the time by the clock of the file system, in seconds since 1970; by the clock here if it is read-only.

        The clock is read once a second for all runs of a folder.
        """
        folder, now = self.path.parent, time.monotonic()
        read_at, difference = _CLOCKS.get(folder, (-math.inf, 0.0))
        if now - read_at >= 1:
            try:
                difference = file_system_time_ns(folder) / 1e9 - now
            except OSError:
                difference = time.time() - now
            _CLOCKS[folder] = now, difference
        return now + difference

    def open_metrics(self, offset: int) -> None:
        """Open the metrics file for appending.

        Args:
            offset: size of the file at the checkpoint that the run resumes from, in bytes; later rows are removed.
        """
        self._metrics = os.open(self.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if os.fstat(self._metrics).st_size > offset:
            os.ftruncate(self._metrics, offset)

    def append(self, row: MetricsRow) -> int:
        """Append a row to the metrics file, and return the size of the file in bytes."""
        assert self._metrics is not None
        line = memoryview((strict_json(row) + "\n").encode())
        while line:
            line = line[os.write(self._metrics, line) :]
        return os.lseek(self._metrics, 0, os.SEEK_END)

    def set_status(self, state: str, **entries: Any) -> None:
        """Set the state of the run that this process executes, and write the status file.

        Args:
            state: new, queued, running, finished, interrupted, pruned or failed.
            entries: further entries of the status file.
        """
        with self._status_lock:
            self._status |= {**entries, "state": state, "pid": os.getpid(), "host": socket.gethostname()}
        self.refresh_status()

    def set_status_from_outside(self, state: str, **entries: Any) -> None:
        """Set the state of a run that this process does not execute. Other entries of the status file are kept."""
        write_object(self._status_path, self.status() | entries | {"state": state})

    def prune(self, reason: str) -> None:
        """Request the run to stop for good, or not to start, since other settings of its search are better.

        Args:
            reason: the comparison that decided, with its environment step.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_object(self.stop_request, {"pruned": reason})

    def withdraw_stop_request(self) -> None:
        """Let the run start or go on. A run that was pruned is not pruned again."""
        with contextlib.suppress(FileNotFoundError):
            if self.pruned():
                self.stop_request.rename(self._overruled_path)
            else:
                self.stop_request.unlink()

    def restore_status(self, status: dict[str, Any]) -> None:
        """Give status.json the content that it had before `set_status_from_outside`; {}: remove the file."""
        if status:
            write_object(self._status_path, status)
        else:
            self._status_path.unlink(missing_ok=True)

    def refresh_status(self) -> None:
        """Write the status file with the current time as heartbeat."""
        with self._status_lock:
            self._status["heartbeat"] = time.time()
            status = dict(self._status)
        write_object(self._status_path, status)

    def note_progress(self, **entries: Any) -> None:
        """Set entries of the status file, which its next refresh writes."""
        with self._status_lock:
            self._status |= entries

    def close(self) -> None:
        """Close the metrics file and release the lock."""
        for handle in (self._metrics, self._lock):
            if handle is not None:
                os.close(handle)
        self._metrics = self._lock = None

    # Read by any process

    def status(self) -> dict[str, Any]:
        """Return the content of status.json; {} if there is none. Numbers that are something else are left out."""
        status = read_object(self._status_path)
        return {key: value for key, value in status.items() if _is_status_entry(key, value)}

    def pruned(self) -> str:
        """Return why the run is pruned, e.g. 'at step 20,000 ...'; '' if it is not."""
        return str(read_object(self.stop_request).get("pruned") or "")

    def was_overruled(self) -> bool:
        """Whether the run was resumed after it had been pruned."""
        return self._overruled_path.exists()

    def result(self) -> dict[str, Any] | None:
        """Return the final results, None while the run is not finished."""
        result = read_object(self.result_path)
        return nan_for_null(result) if result else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final results, which marks the run as finished."""
        write_object(self.result_path, result)

    def last_lines(self, count: int) -> list[str]:
        """Return the last non-blank lines of the console output, or of the log if there is no output."""
        for path in (self.console, self.log):
            lines = tail(path, count)
            if lines:
                return lines
        return []


def _process_of(status: dict[str, Any]) -> str:
    return f"process {status.get('pid')} on {status.get('host')}"


def _is_status_entry(key: str, value: Any) -> bool:
    """Whether an entry of status.json that must be a number is one. The return of a diverged run may be infinite or NaN."""
    if key not in _STATUS_NUMBERS:
        return True
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (key == "return" or math.isfinite(value))


def _read_plain_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file that stands for itself, as `create` writes it.

    Anybody may have written the file: OmegaConf would replace ${...} by variables of the environment, for example, and a
    reference of YAML, which stands for a copy, could make it endless.

    Raises:
        UserError: the file cannot be read, is not a dictionary, or contains ${...}, a reference or the name of a type.
    """
    try:
        text = read_regular_file(path, _MAX_CONFIG_BYTES).decode()
        events = list(yaml.parse(text, ConfigLoader))
        # The first two events are the start of the stream and of the document.
        if len(events) < 3 or not isinstance(events[2], yaml.MappingStartEvent):
            raise ValueError("it is not a dictionary")
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            raise ValueError("it contains a reference (*name)")
        if any(getattr(event, "tag", None) for event in events):
            raise ValueError("it contains a type (!!name), though a run's configuration has plain values only")
        content = yaml.load(text, ConfigLoader)
        if "${" in json.dumps(content, default=str):
            raise ValueError("it contains ${...}, though a run's configuration has values only")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a valid run configuration: {excerpt(reason, 300)}.") from None
    return cast(dict[str, Any], content)


def tail(path: Path, count: int) -> list[str]:
    """Return the last `count` non-blank lines of a text file, inert; [] if it does not exist."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    nonblank = [inert_lines(line) for line in lines if line.strip()]
    return nonblank[max(0, len(nonblank) - count) :]
