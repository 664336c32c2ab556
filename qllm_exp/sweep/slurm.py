"""The launcher for a Slurm cluster: a sweep becomes an array of jobs with several runs each.

The command returns once the jobs are submitted, or, with `wait`, when the runs have ended.
"""

import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qllm_exp.config.device import DeviceResolver
from qllm_exp.errors import UserError
from qllm_exp.experiment import INTERRUPTED as EXIT_INTERRUPTED
from qllm_exp.experiment import REMOVED
from qllm_exp.runs.json_files import write_object
from qllm_exp.runs.run_directory import DiskFull, RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, FINISHED, PRUNED, QUEUED, RUNNING, state_of
from qllm_exp.runs.slurm_queue import JOBS, PACKS, Queue
from qllm_exp.runs.sweep_directory import Sweep, exclusive_lock
from qllm_exp.sweep.launcher import NEXT_GROUP, SHARES, Work, check_option, is_integer_from, is_share
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.sweep.progress import outcome_line, python_command
from qllm_exp.utils.files import is_disk_full, write_atomically
from qllm_exp.utils.memory import Memory
from qllm_exp.utils.text import count, duration

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_S = 2.0  # seconds between reads of the run directories, while waiting
QUERY_S = 10.0  # seconds between queries of Slurm's queue, while waiting
GONE_S = 20.0  # a run that is neither running, queued nor ended for this long is dead; shared file systems have delays
DEFAULT_ARRAY_SIZE = 1000  # Slurm's default MaxArraySize is 1001
LONG_MINUTES = 3600  # as a number, two and a half days; 1:00:00 without quotes in a YAML file is 3600, too
NEXT_MINUTES = 60  # time limit of the job that plans what follows from the results of others
GRES = re.compile(
    r"[a-z]\w*(:[\w.-]+)*(,[a-z]\w*(:[\w.-]+)*)*", re.IGNORECASE
)  # generic resources, as sbatch names them
SUBMIT_LOCK = f".submit.{os.getuid()}.lock"  # in the folder of the run directories; held while this user submits runs


@dataclass(frozen=True)
class Slurm:
    """Trains runs in jobs of a Slurm cluster. conf/hydra/launcher/slurm.yaml documents the options."""

    runs_per_job: int = 1
    at_once: int = 0
    array_parallelism: int = 256
    time: Any = "4:00:00"
    cpus_per_run: int = 1
    mem_gb_per_run: float | None = 4.0
    gpus_per_job: int = 0
    gres: str | None = None
    runs_per_gpu: int = 0
    mps: bool = False
    max_load: float = 0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    python: str | None = None
    stop_before_s: int = 120
    max_timeouts: int = 100
    wait: bool = False

    def __post_init__(self) -> None:
        for name in ("runs_per_job", "array_parallelism", "cpus_per_run"):
            check_option(self, name, is_integer_from(getattr(self, name), 1), "whole numbers from 1")
        for name in ("at_once", "gpus_per_job", "runs_per_gpu", "stop_before_s", "max_timeouts"):
            check_option(self, name, is_integer_from(getattr(self, name), 0), "whole numbers from 0")
        memory = self.mem_gb_per_run
        is_memory = memory is None or _is_positive(memory)
        check_option(self, "mem_gb_per_run", is_memory, "a number of GB, e.g. 4 or 1.5, or null")
        is_list = isinstance(self.setup, (list, tuple))
        check_option(self, "setup", is_list, "a list of commands, e.g. 'setup=[\"module load gcc\"]'")
        check_option(self, "sbatch", isinstance(self.sbatch, dict), "options by name, e.g. 'sbatch={mail-type:FAIL}'")
        check_option(self, "mps", isinstance(self.mps, bool), "true, false")
        check_option(self, "max_load", is_share(self.max_load), SHARES)
        is_gres = self.gres is None or GRES.fullmatch(str(self.gres)) is not None
        check_option(self, "gres", is_gres, "NAME[:TYPE][:COUNT], separated by commas, e.g. gpu:1g.10gb:2 or shard:4")
        self._check_gpus()
        minutes = to_minutes(self.time)
        if isinstance(self.time, int) and minutes >= LONG_MINUTES:
            log.warning(
                "hydra.launcher.time=%d is in minutes, so the limit is %s. YAML reads H:M:S as a number unless it is quoted: "
                'write time: "2:00:00".',
                minutes,
                duration(60 * minutes),
            )

    def _check_gpus(self) -> None:
        """Raise UserError where options that concern GPUs contradict each other."""
        if "gres" in self.sbatch:
            raise UserError(
                f"hydra.launcher.sbatch={{gres:{self.sbatch['gres']}}}: this option of sbatch has a name of its own here. "
                f"Remove it, and use hydra.launcher.gres={self.sbatch['gres']}."
            )
        of_gres = gpus_of_gres(self.gres)
        if self.gpus_per_job and of_gres:
            raise UserError(
                f"hydra.launcher.gres={self.gres} and gpus_per_job={self.gpus_per_job} both request GPUs. "
                "Use hydra.launcher.gpus_per_job=0, or leave gres out."
            )
        if self.mps and not self._gpus:
            raise UserError(
                "hydra.launcher.mps=true: the jobs have no GPU. Use hydra/launcher=slurm_gpu, or hydra.launcher.gpus_per_job=1."
            )
        if self.mps and "mps" in of_gres:
            raise UserError(
                f"hydra.launcher.gres={self.gres}: for this resource the cluster runs MPS itself. "
                "Use hydra.launcher.mps=false."
            )
        room = self._gpus * self.runs_per_gpu
        if room and self.at_once > room:
            raise UserError(
                f"hydra.launcher.at_once={self.at_once} is not allowed: with runs_per_gpu={self.runs_per_gpu}, "
                f"{count(room, 'run')} at a time fit on {count(self._gpus, 'GPU')}. "
                f"Use hydra.launcher.runs_per_gpu={math.ceil(self.at_once / self._gpus)}, or at_once={room}."
            )

    @property
    def _gpus(self) -> int:
        """Number of GPUs of a job."""
        return self.gpus_per_job or sum(gpus_of_gres(self.gres).values())

    @property
    def _runs_at_once(self) -> int:
        """Number of runs of a job that train at the same time, if it has as many."""
        return self.at_once or max(1, self._gpus * self.runs_per_gpu, self._gpus)

    @property
    def waits(self) -> bool:
        """Whether `start` returns only when the runs have ended."""
        return self.wait

    def options(self) -> dict[str, Any]:
        """Return the launcher's 'name' and its options, for the record of the sweep."""
        return {"name": "slurm", **asdict(self)}

    def device_resolver(self) -> DeviceResolver:
        """Return the function that maps a configured device to one of the jobs, whatever GPUs this machine has.

        Raises:
            UserError: there is no sbatch on this machine.
        """
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch on this machine. "
                "Use hydra/launcher=local, or a machine of the cluster."
            )
        return self._resolve_device

    def _resolve_device(self, device: str) -> str:
        if device.startswith("cuda") and not self._gpus:
            raise UserError(
                f"device={device}: the jobs have no GPU. "
                "Use hydra/launcher=slurm_gpu, or hydra.launcher.gpus_per_job=1."
            )
        if device == "auto":
            return "cuda" if self._gpus else "cpu"
        return device

    def memory(self) -> Memory | None:
        """Return the memory that a run's job requests for it; None if that is left to the cluster or to options of sbatch."""
        if self.mem_gb_per_run is None or any(name.startswith("mem") for name in self.sbatch):
            return None
        place = f"a run's share of its job (hydra.launcher.mem_gb_per_run={self.mem_gb_per_run:g})"
        return Memory(int(self.mem_gb_per_run * 2**30), place)

    def max_parallel(self, device: str) -> int:
        """Return the largest number of runs at a time, which does not depend on the device."""
        return self.array_parallelism * min(self._runs_at_once, self.runs_per_job)

    def start(self, sweep: Sweep, work: Work) -> list[RunOutcome]:
        """Submit runs. With `wait`, also wait for them and for the runs that are running or queued already.

        Args:
            sweep: the sweep that the runs belong to.
            work: the runs.

        Returns:
            Outcomes of the runs that could not be submitted; with `wait`, of all runs.

        Raises:
            UserError: nothing could be submitted.
        """
        folder = sweep.path.parent
        with exclusive_lock(folder / SUBMIT_LOCK, lambda: log.info("waiting: another process submits to %s", folder)):
            rejected, job_ids = self._submit_all(sweep, work)
            if work.next_command and job_ids and not self.wait:
                self._submit_next(sweep, work.next_command, job_ids)
        path = shlex.quote(str(sweep.path))
        log.info("status: %s -m qllm_exp status %s    (also: watch, logs, cancel, retry)", python_command(), path)
        if not self.wait:
            return rejected
        not_submitted = {outcome.directory.path for outcome in rejected}
        directories = [*work.directories, *work.running, *work.queued]
        try:
            return rejected + _wait(sweep, [run for run in directories if run.path not in not_submitted])
        except KeyboardInterrupt:
            log.info(
                "no longer waiting; the jobs continue (cancel them: %s -m qllm_exp cancel %s)", python_command(), path
            )
            sys.exit(EXIT_INTERRUPTED)

    def _submit_all(self, sweep: Sweep, work: Work) -> tuple[list[RunOutcome], list[str]]:
        """Submit the runs that no other process has submitted or started since they were planned.

        No other process submits meanwhile.

        Args:
            sweep: the sweep that the runs belong to.
            work: the runs.

        Returns:
            Outcomes of the runs that could not be submitted, and the ids of the jobs.

        Raises:
            UserError: nothing could be submitted.
        """
        queue = Queue.query(sweep.path.parent) if work.directories else Queue({})
        directories = [run for run in work.directories if not _is_taken(run, work.statuses.get(run.path, {}), queue)]
        taken = len(work.directories) - len(directories)
        if taken:
            log.info("%s not submitted: another process submitted or started them meanwhile", count(taken, "run"))
        packs = list(_split(directories, self.runs_per_job))
        rejected: list[RunOutcome] = []
        job_ids: list[str] = []
        for array in _split(packs, _max_array_size()):
            try:
                job_ids.append(self._submit(sweep, array, work))
            except UserError as error:
                if array[0] is packs[0]:
                    raise
                log.info("%s", error)  # a part of the sweep is submitted already
                for pack in array:
                    rejected += [RunOutcome(directory, f"not submitted: {error}", failed=True) for directory in pack]
        return rejected, job_ids

    def _submit_next(self, sweep: Sweep, arguments: Sequence[str], job_ids: Sequence[str]) -> None:
        """Submit a small job that runs a command of this package on a compute node, once other jobs have ended in any way.

        Args:
            sweep: the sweep; the job writes its log there.
            arguments: arguments of the command.
            job_ids: ids of the jobs.
        """
        from qllm_exp.sweep.slurm_submit import job_environment

        log_file = (sweep.path / JOBS / "next_%j.log").absolute()
        options: dict[str, Any] = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "mem": None if self.mem_gb_per_run is None else f"{math.ceil(self.mem_gb_per_run * 1024)}M",
            **self.sbatch,
            "dependency": f"afterany:{':'.join(job_ids)}",
            "job-name": f"{sweep.path.name}.next",
            "time": min(to_minutes(self.time), NEXT_MINUTES),
            "output": log_file,
        }
        python = self.python or shlex.quote(sys.executable)
        lines = [*self.setup, f"{python} -m qllm_exp {shlex.join(arguments)}"]
        script = "\n".join(["#!/bin/bash", *lines, ""])
        command = ["sbatch", *(f"--{name}={value}" for name, value in options.items() if value is not None)]
        environment = job_environment(os.environ, {"additional_parameters": options}) | {NEXT_GROUP: "1"}
        process = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=environment)
        if process.returncode == 0:
            log.info(
                "once these runs have ended, a job of its own runs this command again, for what follows from their results"
            )
        else:
            reason = " ".join(process.stderr.split()) or "no error message"
            log.info(
                "the job that runs this command again was rejected (%s); type the command again once they have ended",
                reason,
            )

    def _submit(self, sweep: Sweep, packs: Sequence[Sequence[RunDirectory]], work: Work) -> str:
        """Submit one array of jobs, and return its id.

        Args:
            sweep: the sweep that the runs belong to.
            packs: the runs of each array task.
            work: says how the directories are created, and on which device the runs are.

        Raises:
            UserError: sbatch rejected the array, or the disk is full; the runs have the state that they had before.
        """
        from qllm_exp.sweep.slurm_submit import PARAMETERS, job_environment

        token = secrets.token_hex(3)
        folder = (sweep.path / JOBS / token).absolute()
        at_once = min(self._runs_at_once, max(map(len, packs)))
        parameters = self._job_parameters(f"{sweep.path.name}.{token}", at_once)
        submission = {
            "parameters": parameters,
            "pack": {
                "at_once": at_once,
                "cores": at_once * self.cpus_per_run,
                "device": work.device,
                "mps": self.mps,
                "max_load": self.max_load,
                "failures": str(work.failures.folder.relative_to(sweep.path)),
                "max_failures": work.failures.limit,
            },
            "python": self.python or shlex.quote(sys.executable),
            "max_timeouts": self.max_timeouts,
        }
        directories = [directory for pack in packs for directory in pack]
        names = [[directory.path.name for directory in pack] for pack in packs]
        previous_status = {}
        try:
            folder.mkdir(parents=True)
            for directory in directories:
                work.create(directory)
                previous_status[directory] = directory.status()
                directory.set_status_from_outside(QUEUED, submission=token)
            write_object(folder / PARAMETERS, submission)
            write_atomically(folder / PACKS, json.dumps(names, indent=1) + "\n")
        except BaseException as error:
            _undo(folder, previous_status)
            if is_disk_full(error):
                raise DiskFull(folder, str(getattr(error, "strerror", error))) from error
            if isinstance(error, OSError):
                raise UserError(f"The sweep cannot be submitted: {error}.") from error
            raise
        job_id, errors = _run_sbatch(folder, job_environment(os.environ, parameters))
        if not job_id:
            _undo(folder, previous_status)
            reason = " ".join(dict.fromkeys(errors[-6:])) or "no error message"
            raise UserError(f"sbatch rejected the sweep: {reason}")
        log.info("Slurm job %s: %s in %s", job_id, count(len(directories), "run"), count(len(packs), "task"))
        return job_id

    def _job_parameters(self, name: str, at_once: int) -> dict[str, Any]:
        """Return submitit's parameters of a job.

        Args:
            name: name of the job.
            at_once: number of runs at a time.
        """
        cpus = at_once * self.cpus_per_run
        memory = self.mem_gb_per_run
        parameters: dict[str, Any] = {
            "job_name": name,
            "time": to_minutes(self.time),
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": min(self.stop_before_s, to_minutes(self.time) * 60 // 4),
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": self.gpus_per_job or None,
            "mem": None if memory is None else f"{math.ceil(at_once * memory * 1024)}MB",
            "setup": self.setup or None,
            "stderr_to_stdout": True,
            # Newer versions of Slurm do not pass the number of CPUs of a batch job on to its steps.
            "srun_args": [f"--cpus-per-task={cpus}"],
            "additional_parameters": {"requeue": True, **({"gres": self.gres} if self.gres else {}), **self.sbatch},
        }
        specified = {key: value for key, value in parameters.items() if value is not None}
        return specified | {"wckey": None}  # submitit sets a wckey by default


def _is_taken(directory: RunDirectory, planned: dict[str, Any], queue: Queue) -> bool:
    """Return True if another process has submitted, started or ended a run since it was planned.

    Args:
        directory: the run's directory.
        planned: content of its status.json when it was planned.
        queue: the jobs that Slurm has; a job that was submitted just now may be missing.
    """
    run_state = state_of(directory, queue)
    changed = any(run_state.status.get(key) != planned.get(key) for key in ("state", "submission", "heartbeat"))
    return changed or run_state.state in (RUNNING, QUEUED, FINISHED)


def _undo(folder: Path, previous_status: Mapping[RunDirectory, dict[str, Any]]) -> None:
    """Remove a submission that Slurm does not have, and give its runs the status that they had before."""
    for directory, status in previous_status.items():
        with suppress(OSError):  # the disk is full
            directory.restore_status(status)
    shutil.rmtree(folder, ignore_errors=True)


def _run_sbatch(folder: Path, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Submit an array in a process of its own. Ctrl-C takes effect only once Slurm has accepted or rejected the array.

    Args:
        folder: folder of the submission.
        environment: environment variables that the jobs inherit.

    Returns:
        The job id, or '' if Slurm rejected the array; and the lines on standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM arrived meanwhile.
    """
    command = [sys.executable, "-m", "qllm_exp.sweep.slurm_submit", str(folder)]
    signals: list[int] = []  # that arrived meanwhile
    previous = {
        number: signal.signal(number, lambda n, frame: signals.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
        output, errors = process.communicate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if signals:
        log.info("Slurm job %s was submitted", output.strip() or "-")
        raise KeyboardInterrupt
    job_id = output.split()[-1] if process.returncode == 0 else ""
    return job_id, errors.strip().splitlines()


def gpus_of_gres(gres: str | None) -> dict[str, int]:
    """Return the number of GPUs that generic resources request, by the name of the resource: gpu, shard or mps.

    An instance of a partitioned GPU (MIG) counts as a GPU. Shards, and shares of the cluster's own MPS, are of one GPU.

    Args:
        gres: NAME[:TYPE][:COUNT], separated by commas; None: nothing is requested.
    """
    gpus: dict[str, int] = {}
    for name, *rest in (resource.split(":") for resource in (gres or "").split(",")):
        if name == "gpu":
            gpus[name] = gpus.get(name, 0) + (int(rest[-1]) if rest and rest[-1].isdigit() else 1)
        elif name in ("shard", "mps"):
            gpus[name] = 1
    return gpus


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def to_minutes(time_limit: Any) -> int:
    """Convert a time limit to minutes, rounded up.

    Args:
        time_limit: as sbatch accepts it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        UserError: any other text, or less than a minute.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time_limit))
    if match is None:
        raise UserError(
            f"hydra.launcher.time={time_limit!r} is not a time limit. Write minutes, H:M:S or D-H:M:S, e.g. 4:00:00."
        )
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:  # D-H, D-H:M or D-H:M:S
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:  # H:M:S
        hours, minutes, seconds = numbers
    else:  # M or M:S
        hours = 0
        minutes, seconds = [*numbers, 0][:2]
    total = math.ceil((int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60)
    if total < 1:
        raise UserError(f"hydra.launcher.time={time_limit!r} is too short: a job needs at least one minute.")
    return total


def _max_array_size() -> int:
    """Return the largest number of tasks that an array may have on this cluster."""
    try:
        process = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return DEFAULT_ARRAY_SIZE
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", process.stdout)
    return max(1, int(match[1]) - 1) if match else DEFAULT_ARRAY_SIZE


def _split(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield consecutive parts of a sequence, of `size` items each; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _wait(sweep: Sweep, directories: Sequence[RunDirectory]) -> list[RunOutcome]:
    """Wait until none of the runs is running or queued, and return their outcomes. Ctrl-C leaves the jobs as they are.

    Args:
        sweep: the sweep that the runs belong to.
        directories: directories of the runs.
    """
    waiting, outcomes = list(directories), list[RunOutcome]()
    queue, queried = Queue({}), -math.inf
    missing_since: dict[Path, float] = {}  # runs that are neither running, queued nor ended
    while waiting:
        now = time.monotonic()
        if now - queried >= QUERY_S:
            queue, queried = _query_again(sweep, queue), now
        for directory in list(waiting):
            run_state = state_of(directory, queue)
            if run_state.state in (RUNNING, QUEUED):
                missing_since.pop(directory.path, None)
                continue
            has_ended = run_state.state in (FINISHED, PRUNED, FAILED)
            if not has_ended and now - missing_since.setdefault(directory.path, now) < GONE_S:
                continue
            if run_state.state == FINISHED:
                outcome = RunOutcome(directory)
            elif not directory.config.exists():
                outcome = RunOutcome(directory, REMOVED, failed=True)
            else:
                error = run_state.reason or run_state.state
                error = f"pruned: {error}" if run_state.state == PRUNED else error
                outcome = RunOutcome(directory, error, failed=run_state.state in (FAILED, DEAD))
            outcomes.append(outcome)
            waiting.remove(directory)
            log.info("[%d/%d] %s", len(outcomes), len(directories), outcome_line(outcome))
        time.sleep(POLL_S if waiting else 0)
    return outcomes


def _query_again(sweep: Sweep, known: Queue) -> Queue:
    """Return the current queue; while Slurm does not answer, the last known one."""
    try:
        return Queue.query(sweep.path.parent)
    except UserError as error:
        log.info("%s", error)
        return known
