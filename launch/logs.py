"""`python -m launch.logs RUN_FOLDER`: what a run printed, and the last lines of the job that it ran in."""

import argparse
import sys
import time
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory, tail
from qllm_exp.runs.sweep_directory import sweeps_in
from qllm_exp.sweep import overview


def main() -> int:
    """Exit codes: 0, or 2 when there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m launch.logs", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("-n", type=int, default=40, metavar="LINES", help="last lines shown (default: 40)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on showing what comes, until the run ends")
    given = parser.parse_args()
    directory = RunDirectory(given.run)
    try:
        directory.read_config()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log = directory.console if directory.console.exists() else directory.log
    print("\n".join([f"==> {log}", *tail(log, given.n)]))
    for sweep in sweeps_in(given.run.absolute().parent):
        job_log = sweep.job_log(given.run.name) if given.run.name in sweep.record.runs else None
        if job_log is not None:
            print("\n".join([f"==> {job_log}", *tail(job_log, given.n)]))
    if given.follow:
        _follow(given.run, log)
    return 0


def _follow(run: Path, log: Path) -> None:
    try:
        with open(log, errors="replace") as file:
            file.seek(0, 2)
            while True:
                text = file.read()
                if text:
                    print(text, end="", flush=True)
                elif overview.look(run).over():
                    return
                else:
                    time.sleep(0.5)
    except (KeyboardInterrupt, FileNotFoundError):
        return


if __name__ == "__main__":
    sys.exit(main())
