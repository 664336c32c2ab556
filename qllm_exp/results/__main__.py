"""`python -m qllm_exp.results COMMAND ...`: what run folders have to show. Each command is a module with `add_parser`."""

import argparse
import os
import sys
from collections.abc import Sequence

from qllm_exp.errors import UserError
from qllm_exp.explain import watch
from qllm_exp.results import commands, dashboard_plan
from qllm_exp.results.records import sources


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 all done, 1 a run could not be done, 2 nothing was started or written."""
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.results", description=__doc__, allow_abbrev=False)
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parsers(choices)
    watch.add_parser(choices)
    dashboard_plan.add_parser(choices)
    given = parser.parse_args(arguments)
    try:
        folders = getattr(given, "folders", ())
        given.typed, given.folders = [str(one) for one in folders], sources.local(folders)
        code: int = given.run(given)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
