"""The directory of a sweep: its runs, the command that created it, and how its runs are started.

sweep.json   the record                 table.md, curves.png   the comparison
jobs/TOKEN/  a submission to Slurm      failed/TOKEN/RUN       a marker for each failed run of a command
"""

import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.runs.json_files import write_object
from qllm_exp.runs.run_directory import CONFIG, RunDirectory
from qllm_exp.runs.slurm_queue import JOBS, PACKS, read_packs
from qllm_exp.utils.files import flock, nearest_path, read_regular_file

RECORD = "sweep.json"
SEARCH_RECORD = "search.json"  # in the directory of a search (search/search_directory.py)
REPORT = "report.html"  # default name of the page of a sweep or a search, in its directory


@dataclass
class SweepRecord:
    """Content of sweep.json. Run directories lie beside the sweep directory, so that all of them can be moved together.

    Attributes:
        command: the command, as typed.
        started: date and time of the last start.
        runs: names of the run directories.
        launcher: 'name' of the launcher, and its options.
        max_failures: number of failed runs after which no further run starts; 0: no limit.
        decide: options of sweep.seeds=auto or sweep.tune; {} for neither.
        decisions: what these have decided, and what it cost, in lines.
        labels: with sweep.tune, the runs with 'fixed' and with 'tuned' settings; a run may have both.
        prune: with sweep.prune, the rule that stops settings; {} for none.
        searches: with sweep.prune, the runs of each setting by method and task, which it compares (`sweep.pruning.searches_of`).
    """

    command: str = ""
    started: str = ""
    runs: list[str] = field(default_factory=list)
    launcher: dict[str, Any] = field(default_factory=dict)
    max_failures: int = 0
    decide: dict[str, Any] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    prune: dict[str, Any] = field(default_factory=dict)
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)


class Sweep:
    """The directory of a sweep.

    Args:
        path: the directory; it must have a record.

    Raises:
        UserError: there is no record, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.record = SweepRecord(**json.loads(read_regular_file(path / RECORD)))
            if not all(_is_name(name) for name in self.record.runs):
                raise ValueError("runs must be names of run directories")
            for name, default in asdict(SweepRecord()).items():
                if not isinstance(getattr(self.record, name), type(default)):
                    raise ValueError(f"{name} must be {type(default).__name__}")
        except FileNotFoundError:
            raise UserError(f"{path} is not a sweep directory: it has no {RECORD}.{nearest_path(path)}") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path / RECORD} cannot be read: {error}") from None

    @classmethod
    def create(
        cls,
        path: Path,
        runs: Sequence[str],
        launcher: dict[str, Any],
        max_failures: int,
        command: str,
        decide: dict[str, Any] | None = None,
        decisions: Sequence[str] = (),
        prune: dict[str, Any] | None = None,
        searches: dict[str, dict[str, Any]] | None = None,
        labels: dict[str, list[str]] | None = None,
    ) -> "Sweep":
        """Write the record of a sweep. If there is one already, its runs are kept.

        Args:
            path: directory of the sweep.
            runs: names of the run directories.
            launcher: 'name' of the launcher, and its options.
            max_failures: number of failed runs after which no further run starts; 0: no limit.
            command: the command, as typed.
            decide: options of sweep.seeds=auto or sweep.tune; None for neither.
            decisions: lines on the decisions that are known by now.
            prune: the rule of sweep.prune; None for none.
            searches: the searches that the rule is for, those of the record included.
            labels: names of the runs of each label.

        Raises:
            UserError: the directory belongs to a run or to a sweep with other options of sweep.seeds=auto or sweep.prune, or cannot
                be written.
        """
        if path.name in runs or (path / CONFIG).exists():
            raise UserError(
                f"sweep.name={path.name} is the name of a run directory in {path.parent}. Choose another name."
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(path / ".record.lock"):  # two sweeps of one name may start in the same second
                new = SweepRecord(decide=decide or {}, prune=prune or {})
                known = cls(path).record if (path / RECORD).exists() else new
                if known.decide != new.decide:
                    raise UserError(_other_options(path, known.decide, new.decide))
                if known.prune != new.prune:
                    raise UserError(_other_pruning(path, known.prune, new.prune))
                all_runs = list(dict.fromkeys([*known.runs, *runs]))
                record = replace(
                    new,
                    command=command,
                    started=started,
                    runs=all_runs,
                    launcher=launcher,
                    max_failures=max_failures,
                    decisions=list(decisions),
                    searches=known.searches | (searches or {}),
                    labels={
                        label: list(dict.fromkeys([*known.labels.get(label, ()), *names]))
                        for label, names in (labels or {}).items()
                    },
                )
                write_object(path / RECORD, asdict(record))
        except OSError as error:
            raise UserError(
                f"Cannot write the sweep directory {path}: {error.strerror}. Choose another folder with dir=..."
            ) from error
        return cls(path)

    def restore_record(self) -> None:
        """Write the record again if the sweep directory was removed while its runs were in progress."""
        if not (self.path / RECORD).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_object(self.path / RECORD, asdict(self.record))

    @property
    def directories(self) -> list[RunDirectory]:
        """The directories of all runs of the sweep; some may not exist yet."""
        return [self.directory(name) for name in self.record.runs]

    def directory(self, name: str) -> RunDirectory:
        """Return the directory of a run, given its name."""
        return RunDirectory(self.path.parent / name)

    def failure_limit(self) -> "FailureLimit":
        """Return the limit of a new command: what failed before it does not count."""
        return FailureLimit(self.path / "failed" / secrets.token_hex(3), self.record.max_failures)

    # Submissions to Slurm

    def submissions(self) -> list[Path]:
        """Return the folders of the submissions, oldest first."""
        dates = {}
        for packs in (self.path / JOBS).glob(f"*/{PACKS}"):  # the date of a folder changes with each file of its jobs
            with suppress(FileNotFoundError):  # the submission was rejected meanwhile
                dates[packs.parent] = packs.stat().st_mtime_ns
        return sorted(dates, key=dates.__getitem__)

    def job_log(self, name: str) -> Path | None:
        """Return the log of the last job that had a run; None if there was no job, or it has not started."""
        for submission in reversed(self.submissions()):
            packs = read_packs(submission)
            for task, runs in enumerate(packs):
                if name in runs:
                    # submitit names a log JOB_TASK_0_log.out; without TASK if the submission is not an array.
                    pattern = rf"\d+_{task}_0_log\.out" if len(packs) > 1 else r"\d+_0_log\.out"
                    logs = [path for path in submission.iterdir() if re.fullmatch(pattern, path.name)]
                    return max(logs, key=lambda path: path.stat().st_mtime, default=None)
        return None

    # The process that runs the sweep on this machine

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Mark the sweep as run by this process. The lock is shared: several processes may run parts of one sweep."""
        handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with suppress(OSError):  # only messages of other processes need the name of this one
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def owner(self) -> str:
        """Return the process that runs the sweep, e.g. 'process 17 on node9'; '' if there is none."""
        try:
            handle = os.open(self._lock_path, os.O_RDONLY)
        except FileNotFoundError:
            return ""
        try:
            is_free = flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.pread(handle, 200, 0).decode() if is_free is False else ""
        finally:
            os.close(handle)

    @property
    def _lock_path(self) -> Path:
        return self.path / ".sweep.lock"


def search_name(key: str) -> str:
    """Return the name of the directory of a search, by the key of the function that it looks for."""
    return f"search_{key[:8]}"


def _other_options(path: Path, known: dict[str, Any], decide: dict[str, Any]) -> str:
    """Return the message for a sweep whose seeds or settings were chosen in another way when it began."""

    def text(options: dict[str, Any]) -> str:
        if "trials" in options:
            return f"sweep.tune={options}"
        return f"sweep.seeds=auto sweep.decide={options}" if options else "seeds that were listed, without tuning"

    return (
        f"{path} was begun with {text(known)}, and cannot be continued with {text(decide)}: the error level of "
        "sweep.seeds=auto, or the equal cost of tuning, holds for the options with which the first scores were seen. Choose "
        "another sweep.name."
    )


def _other_pruning(path: Path, known: dict[str, Any], prune: dict[str, Any]) -> str:
    """Return the message for a sweep whose settings were stopped by another rule, or by none, when it began."""
    began, now = (f"sweep.prune={rule['name']} {rule}" if rule else "sweep.prune=none" for rule in (known, prune))
    return (
        f"{path} was begun with {began}, and cannot be continued with {now}: its table would mix runs that had to survive "
        f"with runs that did not. Choose another sweep.name; or, to run a pruned run to its end, type: qllm-exp retry {path} RUN"
    )


@dataclass(frozen=True)
class FailureLimit:
    """The failed runs of a command, counted by every process that runs a part of it, and the number that stops it.

    Other commands may start and end runs of the same sweep meanwhile.

    Attributes:
        folder: has a marker for each failed run.
        limit: number of failed runs after which no further run starts; 0: no limit, and no marker is written.
    """

    folder: Path
    limit: int

    def mark(self, name: str) -> None:
        """Add the marker of a failed run."""
        if self.limit:
            with suppress(OSError):  # the sweep directory was removed, or the disk is full
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / name).touch()

    def may_start(self) -> bool:
        """Return False once `limit` runs have failed."""
        try:
            return not self.limit or len(os.listdir(self.folder)) < self.limit
        except FileNotFoundError:
            return True


def _is_name(name: Any) -> bool:
    """Whether a value is the name of a folder in the folder of the sweep, not a path to elsewhere."""
    return isinstance(name, str) and "/" not in name and name not in ("", ".", "..")


@contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file within the `with` block; on a file system without locks, hold nothing.

    Args:
        path: the file; created if it does not exist.
        on_wait: called once if another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
            on_wait()
            flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def run_folders(path: Path) -> list[Path]:
    """Return the run directories that a path stands for, each once.

    Args:
        path: a run directory; a sweep directory, which stands for the runs in its record, even if their directories are
            missing; or a folder with many of them.

    Raises:
        UserError: the path holds neither runs nor sweeps, or the record of the sweep cannot be read. An unreadable record
            among many is skipped.
    """
    folder = Path(os.path.abspath(path))  # '.' has no name and no parent
    if (folder / RECORD).exists():
        runs = [directory.path for directory in Sweep(folder).directories]
    elif (folder / CONFIG).exists():
        runs = [folder]
    else:
        runs = sorted(config.parent for config in folder.glob(f"*/{CONFIG}"))
        runs += [directory.path for sweep in sweeps_in(folder) for directory in sweep.directories]
    if not runs:
        problem = "holds no runs and no sweeps" if folder.is_dir() else "is not a folder"
        hint = nearest_path(path)
        raise UserError(
            f"{path} {problem}.{hint} Give a run directory, a sweep directory, or a folder of them (e.g. runs)."
        )
    return list(dict.fromkeys(runs))


def sweeps_in(folder: Path) -> list[Sweep]:
    """Return the sweeps in a folder, oldest first. Sweeps whose record cannot be read are skipped."""
    sweeps = []
    for record in sorted(folder.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime):
        with suppress(UserError):
            sweeps.append(Sweep(record.parent))
    return sweeps
