"""`python -m launch.status [FOLDER ...]`: what ran, runs, waits and failed, and what to do about it."""

import argparse
import json
import signal
import sys
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.sweep import overview


def main() -> int:
    """Exit codes: 0 all runs are done, 1 some failed, 2 there is no such folder, 3 not all are done yet."""
    parser = argparse.ArgumentParser(prog="python -m launch.status", description=__doc__, epilog=main.__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help="of a sweep, of a run, or of many (default: runs)",
    )
    parser.add_argument("--all", action="store_true", help="every run, the finished ones too")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in `status | head`
    try:
        seen = [overview.look(folder) for folder in given.folders]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([overview.as_json(one) for one in seen], indent=1))
    else:
        print("\n".join(line for one in seen for line in overview.lines(one, given.all)))
    codes = [one.exit_code() for one in seen]
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
