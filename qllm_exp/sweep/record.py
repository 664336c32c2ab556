"""The folder of a sweep: which runs it has, the command that asked for them, and how they were started.

sweep.json   the record                 table.md, curves.png   the comparison
jobs/TOKEN/  a submission to Slurm      failed/RUN             there for each run that failed since the last start
"""

import fcntl
import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.files import write_atomically
from qllm_exp.sweep.queue import JOBS, packs_of
from qllm_exp.tracking.run_dir import RunDirectory

RECORD = "sweep.json"


@dataclass
class Record:
    """What is known of a sweep. Runs are names of folders beside the sweep's, so that all can be moved together."""

    command: str = ""
    started: str = ""
    runs: list[str] = field(default_factory=list)
    launcher: dict[str, Any] = field(default_factory=dict)  # 'name' and its options
    max_failures: int = 0


class Sweep:
    """A sweep's folder. `UserError` when it has no record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.record = Record(**json.loads((path / RECORD).read_text()))
        except FileNotFoundError:
            raise UserError(f"{path} is not the folder of a sweep: it has no {RECORD}.") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path / RECORD} cannot be read: {error}") from None

    @classmethod
    def start(cls, path: Path, runs: Sequence[str], launcher: dict[str, Any], max_failures: int) -> "Sweep":
        """Write the record, or extend the one that is there."""
        known = cls(path).record.runs if (path / RECORD).exists() else []
        command = shlex.join(["python", "-m", "qllm_exp", *sys.argv[1:]])
        names = list(dict.fromkeys([*known, *runs]))
        record = Record(command, time.strftime("%Y-%m-%d %H:%M:%S"), names, launcher, max_failures)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / RECORD, json.dumps(asdict(record), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"Cannot write the folder {path}: {error.strerror}. Choose another with dir=...") from error
        return cls(path)

    @property
    def directories(self) -> list[RunDirectory]:
        return [self.directory(name) for name in self.record.runs]

    def directory(self, name: str) -> RunDirectory:
        return RunDirectory(self.path.parent / name)

    # Failures, as counted by whoever runs a part of the sweep

    def forget_failures(self) -> None:
        shutil.rmtree(self.path / "failed", ignore_errors=True)

    def note_failure(self, name: str) -> None:
        if self.record.max_failures:
            (self.path / "failed").mkdir(exist_ok=True)
            (self.path / "failed" / name).touch()

    def may_start(self) -> bool:
        """False once `max_failures` runs have failed."""
        limit = self.record.max_failures
        try:
            return not limit or len(os.listdir(self.path / "failed")) < limit
        except FileNotFoundError:
            return True

    # Submissions

    def submissions(self) -> list[Path]:
        """Folders of the submissions to Slurm, the oldest first."""
        return sorted((self.path / JOBS).glob("*"), key=lambda path: path.stat().st_mtime)

    def job_log(self, name: str) -> Path | None:
        """What the last job that had a run printed, if it was ever submitted and has started."""
        for submission in reversed(self.submissions()):
            for task, runs in enumerate(packs_of(submission)):
                if name in runs:
                    logs = [*submission.glob(f"*_{task}_0_log.out"), *submission.glob("[0-9]*_0_log.out")]
                    return max(logs, key=lambda path: path.stat().st_mtime, default=None)
        return None

    # The process that runs it on this machine

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the sweep is run on this machine."""
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def holder(self) -> str:
        """The process that runs the sweep on this machine, in words; '' when there is none."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except FileNotFoundError:
            return ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(handle, 200, 0).decode()
        except OSError:  # no locks here
            pass
        finally:
            os.close(handle)
        return ""


def sweeps_in(folder: Path) -> list[Sweep]:
    """The sweeps whose folders are in a folder, the oldest first."""
    found = sorted(folder.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    return [Sweep(path.parent) for path in found]
