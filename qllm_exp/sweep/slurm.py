"""A sweep as jobs of a Slurm cluster: an array whose tasks have several runs each. Submitted and left alone, unless `wait`."""

import json
import logging
import math
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qllm_exp.config.device import DeviceResolver
from qllm_exp.errors import UserError
from qllm_exp.experiment import INTERRUPTED
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DONE, FAILED, QUEUED, RUNNING, state_of
from qllm_exp.runs.slurm_queue import JOBS, PACKS, Queue
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.pool import Ended
from qllm_exp.sweep.progress import ending, python
from qllm_exp.utils.files import write_atomically
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_S = 2.0  # seconds between looks at the run folders while waiting
ASK_SLURM_S = 10.0  # ... and between questions to Slurm
GONE_S = 20.0  # a run that neither runs nor is queued nor has ended, for so long, has died; shared file systems are slow to tell


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster; conf/hydra/launcher/slurm.yaml says what each value means."""

    runs_per_job: int = 1
    at_once: int = 1
    array_parallelism: int = 256
    time: Any = "4:00:00"
    cpus_per_run: int = 1
    mem_gb_per_run: float | None = 4.0
    gpus_per_job: int = 0
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
        for name in ("runs_per_job", "at_once", "array_parallelism", "cpus_per_run"):
            self._check(name, _whole(getattr(self, name), 1), "a whole number from 1")
        for name in ("gpus_per_job", "stop_before_s", "max_timeouts"):
            self._check(name, _whole(getattr(self, name), 0), "a whole number from 0")
        memory = self.mem_gb_per_run
        self._check("mem_gb_per_run", memory is None or _positive(memory), "GB as a number, e.g. 4 or 1.5, or null")
        self._check(
            "setup", isinstance(self.setup, (list, tuple)), "a list of commands, e.g. 'setup=[\"module load gcc\"]'"
        )
        self._check("sbatch", isinstance(self.sbatch, dict), "options by name, e.g. 'sbatch={mail-type:FAIL}'")
        minutes(self.time)

    def _check(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise UserError(f"hydra.launcher.{name}={getattr(self, name)!r}: give {wanted}.")

    @property
    def waits(self) -> bool:
        return self.wait

    def options(self) -> dict[str, Any]:
        return {"name": "slurm", **asdict(self)}

    def settle(self) -> DeviceResolver:
        """Runs on a GPU when the jobs have GPUs: this machine's do not matter."""
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch here. Use hydra/launcher=local, or go to a machine of the cluster."
            )
        gpus = self.gpus_per_job

        def settled(device: str) -> str:
            if device.startswith("cuda") and not gpus:
                raise UserError(
                    f"device={device}: these jobs have no GPU. Use hydra/launcher=slurm_gpu, or hydra.launcher.gpus_per_job=1."
                )
            return ("cuda" if gpus else "cpu") if device == "auto" else device

        return settled

    def at_a_time(self, device: str) -> int:
        return self.array_parallelism * min(self.at_once, self.runs_per_job)

    def start(self, sweep: Sweep, work: Work) -> list[Ended]:
        """Submit them. With `wait`, return when they and those that run or wait already have ended, and say how."""
        packs = list(_parts(work.directories, self.runs_per_job))
        failed: list[Ended] = []
        for part in _parts(packs, _largest_array()):
            try:
                self._submit(sweep, part, work)
            except UserError as error:
                if part[0] is packs[0]:
                    raise
                log.info("%s", error)  # a part of the sweep is submitted already
                failed += [Ended(one, f"not submitted: {error}", failed=True) for pack in part for one in pack]
        where = shlex.quote(str(sweep.path))
        log.info("to see them: %s -m launch.status %s    (also: watch, logs, cancel, retry)", python(), where)
        if not self.wait:
            return failed
        lost = {one.directory.path for one in failed}
        watched = [one for one in (*work.directories, *work.running, *work.queued) if one.path not in lost]
        try:
            return failed + _wait(sweep, watched)
        except KeyboardInterrupt:
            log.info("no longer waiting; the jobs go on (%s -m launch.cancel %s stops them)", python(), where)
            sys.exit(INTERRUPTED)

    def _submit(self, sweep: Sweep, packs: Sequence[Sequence[RunDirectory]], work: Work) -> None:
        """Submit one array."""
        from qllm_exp.sweep.slurm_submit import PARAMETERS

        token = secrets.token_hex(3)
        folder = (sweep.path / JOBS / token).absolute()
        folder.mkdir(parents=True)
        at_once = min(self.at_once, max(map(len, packs)))
        pack = {"at_once": at_once, "cores": at_once * self.cpus_per_run, "device": work.device}
        given = {
            "parameters": self._parameters(f"{sweep.path.name}.{token}", at_once),
            "pack": pack,
            "python": self.python or shlex.quote(sys.executable),
            "max_timeouts": self.max_timeouts,
        }
        directories = [directory for pack in packs for directory in pack]
        before = {}
        for directory in directories:
            work.create(directory)
            before[directory] = directory.status()
            directory.set_status_of_another("queued")
        write_atomically(folder / PARAMETERS, json.dumps(given, indent=1) + "\n")
        write_atomically(
            folder / PACKS, json.dumps([[one.path.name for one in pack] for pack in packs], indent=1) + "\n"
        )
        number, said = _hand_over(folder)
        if not number:
            for directory, status in before.items():
                directory.set_status_of_another(**{"state": "new", **status})
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"sbatch did not take the sweep: {' '.join(dict.fromkeys(said[-6:])) or 'no message'}")
        log.info("Slurm job %s: %s in %s", number, count(len(directories), "run"), count(len(packs), "task"))

    def _parameters(self, name: str, at_once: int) -> dict[str, Any]:
        """submitit's parameters of a job with `at_once` runs at a time."""
        cpus = at_once * self.cpus_per_run
        given: dict[str, Any] = {
            "job_name": name,
            "time": minutes(self.time),
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": min(self.stop_before_s, minutes(self.time) * 60 // 4),
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": self.gpus_per_job or None,
            "mem": None if self.mem_gb_per_run is None else f"{math.ceil(at_once * self.mem_gb_per_run * 1024)}MB",
            "setup": self.setup or None,
            "stderr_to_stdout": True,
            # Newer Slurms no longer hand the batch job's number on to its step.
            "srun_args": [f"--cpus-per-task={cpus}"],
            "additional_parameters": {"requeue": True, **self.sbatch},
        }
        return {key: value for key, value in given.items() if value is not None} | {"wckey": None}  # submitit sets one


def _hand_over(folder: Path) -> tuple[str, list[str]]:
    """The job's number, or '' and what Slurm said against it. Ctrl-C has to wait until it is known which of the two."""
    command = [sys.executable, "-m", "qllm_exp.sweep.slurm_submit", str(folder)]
    pipe = subprocess.PIPE
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda n, frame: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        out, err = process.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        log.info("Slurm job %s was submitted", out.strip() or "-")
        raise KeyboardInterrupt
    return (out.split()[-1] if process.returncode == 0 else ""), err.strip().splitlines()


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def minutes(given: Any) -> int:
    """Minutes of a time limit as sbatch takes it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. UserError for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(given))
    if match is None:
        raise UserError(
            f"hydra.launcher.time={given!r} is no time limit: write minutes, H:M:S or D-H:M:S, e.g. 4:00:00."
        )
    days, *rest = match.groups()
    parts = [int(one) for one in rest if one is not None]
    if days is not None:
        hours, mins, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, mins, secs = parts
    else:
        hours, (mins, secs) = 0, [*parts, 0][:2]
    total = math.ceil((int(days or 0) * 24 + hours) * 60 + mins + secs / 60)
    if total < 1:
        raise UserError(f"hydra.launcher.time={given!r}: a job needs a minute at least.")
    return total


def _largest_array() -> int:
    """How many tasks an array may have on this cluster."""
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 1000
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", done.stdout)
    return max(1, int(match[1]) - 1) if match else 1000  # 1001 is Slurm's default


def _parts(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(whole), size):
        yield whole[begin : begin + size]


def _wait(sweep: Sweep, directories: Sequence[RunDirectory]) -> list[Ended]:
    """Return when none of the runs runs or is queued any more, and say how each ended. Ctrl-C leaves the jobs as they are."""
    open_, ended = list(directories), list[Ended]()
    queue, asked = Queue({}), -math.inf
    unseen: dict[Path, float] = {}  # since when a run that has not ended is neither running nor queued
    while open_:
        now = time.monotonic()
        if now - asked >= ASK_SLURM_S:
            queue, asked = _asked_again(sweep, queue), now
        for directory in list(open_):
            at = state_of(directory, queue)
            if at.state in (RUNNING, QUEUED):
                unseen.pop(directory.path, None)
                continue
            if at.state not in (DONE, FAILED) and now - unseen.setdefault(directory.path, now) < GONE_S:
                continue
            one = (
                Ended(directory)
                if at.state == DONE
                else Ended(directory, at.why or at.state, failed=at.state == FAILED)
            )
            ended.append(one)
            open_.remove(directory)
            log.info("[%d/%d] %s", len(ended), len(directories), ending(one))
        time.sleep(LOOK_S if open_ else 0)
    return ended


def _asked_again(sweep: Sweep, known: Queue) -> Queue:
    """What is queued now; what was, while Slurm does not answer."""
    try:
        return Queue.look(sweep.path.parent)
    except UserError as error:
        log.info("%s", error)
        return known
