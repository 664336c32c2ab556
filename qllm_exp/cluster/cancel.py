"""The command `qllm-exp cancel FOLDER [RUN ...]`: stop running runs at a checkpoint, remove waiting runs from the queue."""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.cluster import FOLDER_HELP
from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import FAILED, NEW, QUEUED, RUNNING
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.sweep import overview
from qllm_exp.utils.text import count, inert_lines

SCANCEL_S = 60.0  # seconds to wait for Slurm to end the jobs


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 success, 2 not a folder with these runs, or Slurm does not answer."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp cancel",
        description="Stop running runs at a checkpoint, and remove waiting runs from the queue.",
        epilog=main.__doc__,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=FOLDER_HELP)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of the runs to cancel (default: all)")
    options = parser.parse_intermixed_args(arguments)
    try:
        print(cancel(options.folder, options.runs))
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    return 0


def cancel(folder: Path, names: list[str]) -> str:
    """Cancel the runs that are running, queued or new.

    Args:
        folder: a sweep directory, a run directory, or a folder with many of them.
        names: names of the runs to cancel; empty: all.

    Returns:
        What was cancelled, in a sentence.

    Raises:
        UserError: the folder does not hold these runs, or Slurm does not answer.
    """
    status = overview.read_status(folder, names)
    if status.warning:
        raise UserError(status.warning)
    selected = [run for run in status.runs if run.state in (RUNNING, QUEUED, NEW)]
    runs_by_job = defaultdict(set)
    for run in selected:
        if run.job is not None:
            runs_by_job[run.job.id].add(run.directory.path.name)
    for run in selected:  # running runs see the request within seconds; no process starts the others
        try:
            run.directory.path.mkdir(parents=True, exist_ok=True)
            run.directory.stop_request.touch()
        except OSError as error:
            raise UserError(
                f"Cannot write {run.directory.stop_request}: {error.strerror}. Free some space or correct the permissions, "
                "then cancel again."
            ) from None
    base = overview.base_folder(folder)
    queue = Queue.query(base)
    # A job is cancelled only if all its unfinished runs are; otherwise its other runs continue.
    jobs = [job for job, runs in runs_by_job.items() if _unfinished(queue.runs_of(job), base) <= runs]
    if jobs:
        subprocess.run(["scancel", *jobs], check=False)
        deadline = time.monotonic() + SCANCEL_S
        while any(Queue.query(base).runs_of(job) for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.5)
    running = sum(run.state == RUNNING for run in selected)
    message = (
        f"cancelled: {count(running, 'running run')} (stopping at a checkpoint), "
        f"{count(len(selected) - running, 'waiting run')}"
    )
    if runs_by_job:
        message += f"; {count(len(jobs), 'Slurm task')} cancelled"
    return message


def _unfinished(names: set[str], base: Path) -> set[str]:
    """Return the names of those runs that are neither finished, pruned nor failed.

    Args:
        names: names of runs.
        base: the folder that holds the run directories.
    """
    directories = [RunDirectory(base / name) for name in names]
    return {
        directory.path.name
        for directory in directories
        if directory.result() is None and not directory.pruned() and directory.status().get("state") != FAILED
    }
