"""`python -m launch.retry FOLDER [RUN ...] [KEY=VALUE ...]`: run again what failed in a sweep, and nothing else.

KEY=VALUE changes an option of the launcher that the sweep was started with, e.g. time=12:00:00 mem_gb_per_run=8, or
launcher=local to run here what was submitted to Slurm.
"""

import argparse
import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf

from qllm_exp.errors import UserError
from qllm_exp.sweep import look
from qllm_exp.sweep.launch import again, launcher_from
from qllm_exp.sweep.state import DEAD, FAILED, NEW, STOPPED


def main() -> int:
    """Exit codes: 0 all went well or were submitted, 1 some failed again, 2 nothing was started, 3 stopped at a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.retry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a sweep")
    parser.add_argument("rest", nargs="*", metavar="RUN | KEY=VALUE", help="some of its runs; options of the launcher")
    parser.add_argument("--missing", action="store_true", help="also what was stopped or never started")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = [one for one in given.rest if "=" in one]
    try:
        return retry(given.folder, [one for one in given.rest if "=" not in one], options, given.missing)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def retry(folder: Path, names: list[str], options: list[str], missing: bool) -> int:
    """Start what is to be run again; the exit code."""
    seen = look.look(folder, names)
    if seen.sweep is None:
        raise UserError(
            f"{folder} is not the folder of a sweep. One run again: python -m qllm_exp.experiment RUN_FOLDER"
        )
    if seen.note:
        raise UserError(seen.note)
    states = (FAILED, DEAD, STOPPED, NEW) if missing or names else (FAILED, DEAD)
    chosen = [one.directory for one in seen.runs if one.state in states]
    never = [one for one in chosen if not one.config.exists()]
    if never:
        raise UserError(
            f"{len(never)} of these were never prepared; the sweep's own command does it: {seen.sweep.record.command}"
        )
    if not chosen:
        print(f"nothing to run again: {look.title(seen)}")
        return 0
    given = OmegaConf.to_container(OmegaConf.from_dotlist(options))
    assert isinstance(given, dict)
    changed = {str(key): value for key, value in given.items()}
    recorded = dict(seen.sweep.record.launcher)
    if changed.get("launcher", recorded.get("name")) != recorded.get("name"):
        recorded = {}
    recorded["name"] = changed.pop("launcher", recorded.get("name", "local"))
    ended = again(seen.sweep, chosen, launcher_from(recorded | changed))
    return 1 if any(one.failed for one in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
