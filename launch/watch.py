"""`python -m launch.watch FOLDER`: the status of a sweep, renewed until nothing runs and nothing is queued."""

import argparse
import sys
import time
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.sweep import overview


def main() -> int:
    """Exit codes: 0 all runs are done, 1 some failed, 2 there is no such folder, 3 some are stopped or new. Ctrl-C only leaves."""
    parser = argparse.ArgumentParser(prog="python -m launch.watch", description=__doc__, epilog=main.__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="of a sweep, of a run, or of many (default: runs)",
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between looks (default: 5)")
    given = parser.parse_args()
    terminal, before = sys.stdout.isatty(), ""
    try:
        while True:
            seen = overview.look(given.folder)
            if terminal:
                text = "\n".join(overview.lines(seen))
                print(
                    f"\033[H\033[2J{time.strftime('%H:%M:%S')}  {text}", flush=True
                )  # from the top of an empty screen
            elif overview.title(seen) != before:
                before = overview.title(seen)
                print(before, flush=True)
            if seen.over():
                break
            time.sleep(given.every)
    except KeyboardInterrupt:
        return 3
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not terminal:
        print("\n".join(overview.lines(seen)))
    return seen.exit_code()


if __name__ == "__main__":
    sys.exit(main())
