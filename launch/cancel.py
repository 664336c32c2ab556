"""`python -m launch.cancel FOLDER [RUN ...]`: stop runs of a sweep at a checkpoint, and take those that wait out of the queue."""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import NEW, QUEUED, RUNNING
from qllm_exp.runs.slurm_queue import Queue
from qllm_exp.sweep import overview
from qllm_exp.utils.text import count

GONE_S = 60.0  # seconds that Slurm is given to end the jobs


def main() -> int:
    """Exit codes: 0, or 2 when there is no such folder or run, or Slurm does not answer."""
    parser = argparse.ArgumentParser(prog="python -m launch.cancel", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a sweep, of a run, or of many")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="some of its runs (default: all)")
    given = parser.parse_intermixed_args()
    try:
        print(cancel(given.folder, given.runs))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def cancel(folder: Path, names: list[str]) -> str:
    """Cancel what is neither done nor over, and say what was done."""
    seen = overview.look(folder, names)
    if seen.note:
        raise UserError(seen.note)
    chosen = [one for one in seen.runs if one.state in (RUNNING, QUEUED, NEW)]
    jobs = defaultdict(set)
    for one in chosen:
        if one.job is not None:
            jobs[one.job.id].add(one.directory.path.name)
    for one in chosen:  # seen by a run within seconds, and by whoever would start it
        one.directory.path.mkdir(parents=True, exist_ok=True)
        one.directory.stop_request.touch()
    base, queue = overview.base_of(folder), Queue.look(overview.base_of(folder))
    whole = [job for job, runs in jobs.items() if _unfinished(queue.runs_of(job), base) <= runs]
    if whole:
        subprocess.run(["scancel", *whole], check=False)
        end = time.monotonic() + GONE_S
        while any(Queue.look(base).runs_of(job) for job in whole) and time.monotonic() < end:
            time.sleep(0.5)
    running = sum(one.state == RUNNING for one in chosen)
    stopped = f"{running} running, to stop at a checkpoint; {len(chosen) - running} waiting, not to be started"
    slurm = f"; {count(len(whole), 'Slurm task')} cancelled" if jobs else ""
    return f"{stopped}{slurm}"


def _unfinished(names: set[str], base: Path) -> set[str]:
    """Those runs that their job has yet to end."""
    open_ = (RunDirectory(base / name) for name in names)
    return {one.path.name for one in open_ if one.result() is None and one.status().get("state") != "failed"}


if __name__ == "__main__":
    sys.exit(main())
