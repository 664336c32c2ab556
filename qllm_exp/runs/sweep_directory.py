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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qllm_exp.config import overrides
from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import CONFIG, RunDirectory
from qllm_exp.runs.slurm_queue import JOBS, packs_of
from qllm_exp.utils.files import flock, write_atomically

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
        """Write the record, or extend the one that is there. UserError when the folder is a run's, or cannot be written."""
        if path.name in runs or (path / "config.yaml").exists():
            raise UserError(f"sweep.name={path.name} is the name of a run's folder in {path.parent}. Choose another.")
        command = shlex.join(["python", "-m", "qllm_exp", *overrides.typed])
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with _locked(path / ".record.lock"):  # two sweeps of one name may be started in the same second
                known = cls(path).record.runs if (path / RECORD).exists() else []
                record = Record(command, started, list(dict.fromkeys([*known, *runs])), launcher, max_failures)
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
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def holder(self) -> str:
        """The process that runs the sweep on this machine, in words; '' when there is none."""
        try:
            handle = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return ""
        try:
            free = flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.pread(handle, 200, 0).decode() if free is False else ""
        finally:
            os.close(handle)

    @property
    def _lock(self) -> Path:
        return self.path / ".sweep.lock"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def run_folders(path: Path) -> list[Path]:
    """The folders of the runs that a path means, each once: a run's own, those of a sweep (which lie beside its folder, or
    should), or of a folder with many of either.

    Raises:
        UserError: for a path that holds no run; for a sweep whose record cannot be read, unless it is one among many.
    """
    whole = Path(os.path.abspath(path))  # '.' has no name and no parent
    if (whole / RECORD).exists():
        found = [one.path for one in Sweep(whole).directories]
    elif (whole / CONFIG).exists():
        found = [whole]
    else:
        found = sorted(one.parent for one in whole.glob(f"*/{CONFIG}"))
        found += [one.path for sweep in sweeps_in(whole) for one in sweep.directories]
    if not found:
        what = "holds no run and no sweep" if whole.is_dir() else "is no folder"
        raise UserError(f"{path} {what}. Give the folder of a run, of a sweep, or of many of either (e.g. runs).")
    return list(dict.fromkeys(found))


def sweeps_in(folder: Path) -> list[Sweep]:
    """The sweeps whose folders are in a folder, the oldest first; without those whose record cannot be read."""
    found = []
    for path in sorted(folder.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime):
        with suppress(UserError):
            found.append(Sweep(path.parent))
    return found
