"""The command `qllm-exp logs RUN_FOLDER`: the last lines that a run and its job printed."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.runs.run_directory import CONFIG, RunDirectory, tail
from qllm_exp.runs.sweep_directory import sweeps_in
from qllm_exp.sweep import overview
from qllm_exp.utils.files import nearest_path
from qllm_exp.utils.text import inert, inert_lines


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 success, 2 not a run directory."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp logs",
        description="Show the last lines that a run and its Slurm job printed.",
        epilog=main.__doc__,
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a run directory")
    parser.add_argument("-n", type=int, default=40, metavar="LINES", help="number of lines (default: 40)")
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until the run ends")
    options = parser.parse_args(arguments)
    directory = RunDirectory(options.run)
    if not directory.config.exists():
        hint = nearest_path(options.run)
        print(f"error: {inert(options.run)} is not a run directory: it has no {CONFIG}.{inert(hint)}", file=sys.stderr)
        return 2
    log = directory.console if directory.console.exists() else directory.log
    _print_tail(log, options.n)
    for sweep in sweeps_in(options.run.absolute().parent):
        job_log = sweep.job_log(options.run.name) if options.run.name in sweep.record.runs else None
        if job_log is not None:
            _print_tail(job_log, options.n)
    if options.follow:
        _follow(options.run, log)
    return 0


def _print_tail(log: Path, count: int) -> None:
    print(inert_lines("\n".join([f"==> {log}", *tail(log, count)])))


def _follow(run: Path, log: Path) -> None:
    """Print new lines of a log until the run has ended, or until Ctrl-C."""
    try:
        with open(log, errors="replace") as file:
            file.seek(0, 2)
            while True:
                text = file.read()
                if text:
                    print(inert_lines(text), end="", flush=True)
                elif overview.read_status(run).is_idle():
                    return
                else:
                    time.sleep(0.5)
    except (KeyboardInterrupt, FileNotFoundError):
        return
