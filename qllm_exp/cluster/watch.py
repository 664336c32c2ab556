"""The command `qllm-exp watch FOLDER`: the status of a sweep, refreshed until no run is running or queued."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.cluster import FOLDER_HELP
from qllm_exp.errors import UserError
from qllm_exp.sweep import overview
from qllm_exp.utils.text import inert_lines

CLEAR_SCREEN = "\033[H\033[2J"


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 all runs are finished, 1 some failed or are dead, 2 not a folder with runs, 3 unfinished, or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp watch",
        description="Show the status of a sweep, refreshed until no run is running or queued. Ctrl-C does not affect the runs.",
        epilog=main.__doc__,
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help=f"{FOLDER_HELP} (default: runs)",
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="time between updates (default: 5)")
    options = parser.parse_args(arguments)
    is_terminal = sys.stdout.isatty()
    last_title = ""
    try:
        while True:
            status = overview.read_status(options.folder)
            title = overview.title(status)
            if is_terminal:
                text = "\n".join(overview.lines(status))
                print(f"{CLEAR_SCREEN}{time.strftime('%H:%M:%S')}  {text}", flush=True)
            elif title != last_title:
                last_title = title
                print(title, flush=True)
            if status.is_idle():
                break
            time.sleep(options.every)
    except KeyboardInterrupt:
        return 3
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    if not is_terminal:
        print("\n".join(overview.lines(status)))
    return status.exit_code()
