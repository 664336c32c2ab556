"""`python -m qllm_exp.results`: what finished runs have to show."""

import argparse
import sys
from collections.abc import Sequence

from qllm_exp.errors import UserError
from qllm_exp.results import watch


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 done, 2 wrong call."""
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.results", description=__doc__, allow_abbrev=False)
    watch.add_parser(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    given = parser.parse_args(arguments)
    try:
        done: int = given.run(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
