"""`python -m qllm_exp.results COMMAND ...`: tables, figures and reports from run directories.

Each command is a module with `add_parser`.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from qllm_exp.errors import UserError
from qllm_exp.explain import watch
from qllm_exp.results import commands, dashboard_plan
from qllm_exp.results.records import sources
from qllm_exp.utils.command_line import parse_subcommand
from qllm_exp.utils.text import inert_lines

_DESCRIPTION = "Tables, figures and reports from run directories."


def main(arguments: Sequence[str]) -> int:
    """Run a command.

    Returns:
        Exit code: 0 success, 1 a run could not be processed, 2 nothing was started or written.
    """
    parser = argparse.ArgumentParser(prog="qllm-exp results", description=_DESCRIPTION, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parsers(subparsers)
    watch.add_parser(subparsers)
    dashboard_plan.add_parser(subparsers)
    options = parse_subcommand(parser, subparsers, arguments)
    try:
        typed = getattr(options, "folders", ())
        options.sources = [str(source) for source in typed]
        options.folders = sources.to_folders(typed)
        exit_code: int = options.run(options)
        return exit_code
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader closed the pipe, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # e.g. a folder that this user may not read
        print(
            f"error: {inert_lines(f'{error.filename}: {error.strerror}' if error.filename else error)}.",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
