"""Runs of a sweep on this machine: one process per run, one run per core, each with its own log; one failure stops no other."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qllm_exp.experiment import INTERRUPTED
from qllm_exp.preparation import Prepared
from qllm_exp.tracking.console import LINE_EVERY_S, duration
from qllm_exp.tracking.run_dir import RunDirectory

log = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass
class Ended:
    """How one run ended. `error` is empty when it finished."""

    directory: RunDirectory
    code: int
    error: str = ""


@dataclass
class _Job:
    ready: Prepared
    process: subprocess.Popen[bytes]
    slot: int


class Interrupt(Exception):
    """Ctrl-C: the runs in progress have stopped at a checkpoint."""


def run_all(runs: Sequence[Prepared], n_jobs: int = 0) -> list[Ended]:
    """Run them all, `n_jobs` at a time (0: one per core that this process may use), and say how each ended.

    Raises Interrupt after Ctrl-C, when every process has ended.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    slots = n_jobs or len(cores)
    waiting, ended = deque(runs), list[Ended]()
    jobs: dict[int, _Job] = {}
    display = _Display(len(runs), min(slots, len(runs)))
    try:
        while waiting or jobs:
            for slot in range(slots):
                if slot not in jobs and waiting:
                    jobs[slot] = _start(
                        waiting.popleft(), slot, {cores[slot % len(cores)]} if slots >= len(cores) else None
                    )
            for slot, job in list(jobs.items()):
                if job.process.poll() is not None:
                    ended.append(_ending(job))
                    display.ended(ended[-1])
                    del jobs[slot]
            display.show(list(jobs.values()))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        display.close()
        _stop(list(jobs.values()))
        raise Interrupt from None
    finally:
        display.close()
    return ended


def _start(ready: Prepared, slot: int, cores: set[int] | None) -> _Job:
    """Start a run in a process (and process group) of its own, so that a signal to the sweep reaches it through the sweep only."""
    directory = ready.directory
    directory.create(ready.run, ready.tfcaf)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "qllm_exp.experiment", str(directory.path)]
    with open(directory.path / "console.txt", "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)
    return _Job(ready, process, slot)


def _ending(job: _Job) -> Ended:
    directory, code = job.ready.directory, job.process.returncode
    if code == 0:
        return Ended(directory, 0)
    if code == INTERRUPTED:
        return Ended(directory, code, "stopped at a checkpoint")
    status = directory.status()
    error = status.get("error") or _last_line(directory.path / "console.txt") or "no message"
    if code < 0:
        error = f"killed by {signal.Signals(-code).name}"
    elif status.get("state") == "running":
        error = f"ended with exit code {code} without a word"
    if status.get("state") != "failed":
        directory.set_status("failed", error=error)
    return Ended(directory, code, error)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def _stop(jobs: Sequence[_Job]) -> None:
    """Ask the runs to stop at a checkpoint; a second Ctrl-C kills them."""
    log.info("stopping %d runs at their next checkpoint (Ctrl-C again: at once)", len(jobs))
    for job in jobs:
        job.process.send_signal(signal.SIGTERM)
    try:
        for job in jobs:
            job.process.wait()
    except KeyboardInterrupt:
        for job in jobs:
            job.process.kill()
            job.process.wait()


class _Display:
    """A line per running run and one for all on a terminal; plain lines elsewhere."""

    def __init__(self, total: int, slots: int) -> None:
        self.total, self.count, self.begin = total, 0, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.last_line = self.begin
        hide = not self.terminal
        form = "{desc}: {n_fmt}/{total_fmt} runs |{bar}| {elapsed}"
        self.whole = tqdm(total=total, desc="sweep", bar_format=form, dynamic_ncols=True, disable=hide, position=0)
        self.lines = [
            tqdm(total=0, bar_format="  {desc}", disable=hide, position=i + 1, leave=False, dynamic_ncols=True)
            for i in range(slots)
        ]

    def show(self, jobs: Sequence[_Job]) -> None:
        if self.terminal:
            for line, job in zip(self.lines, jobs, strict=False):
                line.set_description_str(_live(job))
            self.whole.refresh()
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            log.info("%d of %d runs done; running: %s", self.count, self.total, "; ".join(map(_live, jobs)))

    def ended(self, one: Ended) -> None:
        self.count += 1
        self.whole.update(1)
        done = one.directory.result()
        text = f"return {done['final_return']:.3f} in {duration(done['wall_s'])}" if done else f"FAILED: {one.error}"
        message = f"[{self.count}/{self.total}] {one.directory.path.name}: {text}"
        if self.terminal:
            self.whole.write(message, file=sys.stderr)
        else:
            log.info(message)

    def close(self) -> None:
        for line in [*self.lines, self.whole]:
            line.close()


def _live(job: _Job) -> str:
    status: dict[str, Any] = job.ready.directory.status()
    name, total = job.ready.directory.path.name, job.ready.run.train.total_steps
    step = status.get("env_step") or 0
    if not step or step >= total:
        return f"{name} {'finishing' if step else 'starting'}"
    returned = "" if status.get("return") is None else f", return {status['return']:.3f}"
    speed = status.get("steps_per_s") or 0
    left = f", {speed:,.0f} steps/s, {duration((total - step) / speed)} left" if speed else ""
    return f"{name} {step / total:.0%}{returned}{left}"
