"""The command `qllm-exp status [FOLDER ...]`: the state of every run, and what to do about it."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.cluster import FOLDER_HELP
from qllm_exp.errors import UserError
from qllm_exp.sweep import overview
from qllm_exp.utils.files import strict_json
from qllm_exp.utils.text import inert_lines


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 all runs are finished, 1 some failed or are dead, 2 not a folder with runs, 3 some are not finished yet."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp status",
        description="Show the state of every run, and what to do about it.",
        epilog=main.__doc__,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help=f"{FOLDER_HELP} (default: runs)",
    )
    parser.add_argument("--all", action="store_true", help="list every run, finished ones included")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_intermixed_args(arguments)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `status | head`
    try:
        statuses = [overview.read_status(folder) for folder in options.folders]
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    if options.json:
        print(strict_json([overview.as_json(status) for status in statuses], indent=1))
    else:
        print("\n".join(line for status in statuses for line in overview.lines(status, options.all)))
    codes = [status.exit_code() for status in statuses]
    return 1 if 1 in codes else max(codes)
