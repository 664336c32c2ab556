"""`python -m launch.retry FOLDER [RUN ...] [KEY=VALUE ...]`: run again what failed in a sweep, and nothing else.

KEY=VALUE changes an option of the launcher that the sweep was started with, e.g. time=12:00:00 mem_gb_per_run=8, or
launcher=local to run here what was submitted to Slurm.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from qllm_exp.errors import UserError
from qllm_exp.runs.run_state import DEAD, FAILED, NEW, STOPPED
from qllm_exp.sweep import overview
from qllm_exp.sweep.launch import again, launcher_from


def main() -> int:
    """Exit codes: 0 all went well or were submitted, 1 some failed again, 2 nothing was started, 3 stopped at a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.retry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a sweep")
    parser.add_argument("rest", nargs="*", metavar="RUN | KEY=VALUE", help="some of its runs; options of the launcher")
    parser.add_argument("--missing", action="store_true", help="also what was stopped or never started")
    given = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = [one for one in given.rest if "=" in one]
    try:
        return retry(given.folder, [one for one in given.rest if "=" not in one], options, given.missing)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def retry(folder: Path, names: list[str], options: list[str], missing: bool) -> int:
    """Start what is to be run again; the exit code."""
    seen = overview.look(folder, names)
    if seen.sweep is None:
        raise UserError(
            f"{folder} is not the folder of a sweep. One run again: python -m qllm_exp.experiment RUN_FOLDER"
        )
    if seen.note:
        raise UserError(seen.note)
    states = (FAILED, DEAD, STOPPED, NEW) if missing or names else (FAILED, DEAD)
    chosen = [one.directory for one in seen.runs if one.state in states]
    ready = [one for one in chosen if one.config.exists()]
    if len(ready) < len(chosen):
        print(
            f"{len(chosen) - len(ready)} were never prepared; the sweep's own command does it: {seen.sweep.record.command}"
        )
    if not ready:
        print(f"nothing to run again: {overview.title(seen)}")
        return 3 if chosen else 0
    changed = dict(map(_option, options))
    recorded = dict(seen.sweep.record.launcher)
    if changed.get("launcher", recorded.get("name")) != recorded.get("name"):
        recorded = {}
    recorded["name"] = changed.pop("launcher", recorded.get("name", "local"))
    return again(seen.sweep, ready, launcher_from(recorded | changed))


def _option(text: str) -> tuple[str, Any]:
    """KEY=VALUE, as on the command line of a sweep (12:00:00 stays a text)."""
    try:
        parsed = OverridesParser.create().parse_override(text.removeprefix("hydra.launcher."))
        value = parsed.value()
    except HydraException:
        raise UserError(f"{text!r} cannot be read: write KEY=VALUE, e.g. time=12:00:00 or mem_gb_per_run=8.") from None
    return parsed.key_or_group, value.text if isinstance(value, QuotedString) else value


if __name__ == "__main__":
    sys.exit(main())
