"""The command `qllm-exp retry FOLDER [RUN ...] [KEY=VALUE ...]`: run the failed runs of a sweep again."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from qllm_exp.config.text_options import quote
from qllm_exp.errors import UserError
from qllm_exp.runs.run_state import DEAD, FAILED, INTERRUPTED, NEW, PRUNED
from qllm_exp.sweep import overview
from qllm_exp.sweep.launch import make_launcher, restart
from qllm_exp.utils.text import inert_lines

DESCRIPTION = """\
Run the failed and dead runs of a sweep again, with the launcher that started it.

KEY=VALUE changes an option of the launcher, e.g. time=12:00:00 mem_gb_per_run=8.
launcher=local trains runs here that were submitted to Slurm.
"""


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 all runs are finished or submitted, 1 some failed or are dead, 2 nothing was started, 3 some are unfinished."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp retry",
        description=DESCRIPTION,
        epilog=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep directory")
    parser.add_argument(
        "rest",
        nargs="*",
        metavar="RUN | KEY=VALUE",
        help="names of the runs to retry (default: all that failed); options of the launcher",
    )
    parser.add_argument("--missing", action="store_true", help="also start interrupted and new runs")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    names = [argument for argument in options.rest if "=" not in argument]
    launcher_options = [argument for argument in options.rest if "=" in argument]
    try:
        return retry(options.folder, names, launcher_options, options.missing)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2


def retry(folder: Path, names: list[str], launcher_options: list[str], missing: bool) -> int:
    """Start runs of a sweep again.

    Args:
        folder: a sweep directory.
        names: names of the runs; empty: all that failed.
        launcher_options: KEY=VALUE options that change the recorded ones.
        missing: also start interrupted and new runs. Named runs are started in any of these states, and if they are pruned.

    Returns:
        The exit code.

    Raises:
        UserError: not a sweep directory, an unknown run or option, or Slurm does not answer.
    """
    status = overview.read_status(folder, names)
    if status.sweep is None:
        raise UserError(
            f"{folder} is not a sweep directory. To retry a single run: python -m qllm_exp.experiment RUN_FOLDER"
        )
    if status.warning:
        raise UserError(status.warning)
    states = (FAILED, DEAD, INTERRUPTED, NEW) if missing or names else (FAILED, DEAD)
    states = (*states, PRUNED) if names else states
    selected = [run.directory for run in status.runs if run.state in states]
    ready = [directory for directory in selected if directory.config.exists()]
    if len(ready) < len(selected):
        print(
            f"{len(selected) - len(ready)} new runs have no directory yet. The command of the sweep starts them: "
            f"{status.sweep.record.command}"
        )
    if not ready:
        print(f"nothing to retry: {overview.title(status)}")
        return 3 if selected else 0
    changes = dict(map(_parse_option, launcher_options))
    recorded = dict(status.sweep.record.launcher)
    recorded_name = recorded.get("name", "local")
    name = changes.pop("launcher", recorded_name)
    if name != recorded_name:
        recorded = {}  # options of another launcher
    return restart(status.sweep, ready, make_launcher({**recorded, "name": name, **changes}))


def _parse_option(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE as the command line of a sweep does; 12:00:00 stays a text."""
    try:
        typed = quote(f"hydra.launcher.{text.removeprefix('hydra.launcher.')}")
        override = OverridesParser.create().parse_override(typed.removeprefix("hydra.launcher."))
        value = override.value()
    except HydraException:
        raise UserError(
            f"{text!r} is not a launcher option. Write KEY=VALUE, e.g. time=12:00:00 or mem_gb_per_run=8."
        ) from None
    return override.key_or_group, value.text if isinstance(value, QuotedString) else value
