"""Parse the command line of a command with subcommands."""

import argparse
from collections.abc import Sequence

from qllm_exp.errors import nearest


def parse_subcommand(
    parser: argparse.ArgumentParser,
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    arguments: Sequence[str],
) -> argparse.Namespace:
    """Parse a subcommand and its arguments. Options may stand before, between and after the positional arguments.

    argparse itself rejects positional arguments on both sides of a subcommand's option: 'env=lbf --dry-run llm=openai'.

    Args:
        parser: parser of the command.
        subparsers: its subcommands.
        arguments: the command line, without the name of the program.
    """
    name, *rest = arguments or [""]
    choices = subparsers.choices
    if name in choices:
        return choices[name].parse_intermixed_args(rest, argparse.Namespace(**{subparsers.dest: name}))
    if name and not name.startswith("-"):
        parser.error(f"{name!r} is not a command.{nearest(name, choices)} Commands: {', '.join(choices)}.")
    return parser.parse_args(arguments)  # prints the help or an error, and exits
