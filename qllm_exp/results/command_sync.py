"""`python -m qllm_exp.results sync FOLDER...`: send to Weights & Biases what it lacks of runs."""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.errors import UserError

_SYNC = (
    "For runs with tracking.mode=offline, and for those that lost the server. Sends each row once, however often it is called, "
    "and says a line per run."
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `sync`."""
    parser = commands.add_parser("sync", help="send to Weights & Biases what it lacks of runs", description=_SYNC)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, of a sweep, or with runs in it"
    )
    parser.add_argument("--all", action="store_true", help="send runs of tracking=local too")
    parser.add_argument("--adopt", action="store_true", help="go on with runs on the server that other folders began")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for the end of a run (60)")
    parser.set_defaults(run=_sync)


def _sync(options: argparse.Namespace) -> int:
    """In a process with an environment of its own, which alone imports the client."""
    from qllm_exp.tracking import login, mirror

    folders = runs_in(options.folders)
    if not login.logged_in():
        raise UserError(f"{login.HOW.format(server=login.server())}.")
    switches = ["--all"] * options.all + ["--adopt"] * options.adopt + ["--timeout", str(options.timeout)]
    names = "".join(f"{path.absolute()}\n" for path in folders)
    return subprocess.run(
        mirror.command("--once", *switches), input=names, text=True, env=mirror.environment(), check=False
    ).returncode


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The run folders meant, each once. UserError for a folder that holds none.

    Args:
        folders: each a run's, a sweep's (its runs lie beside it), or one that has run folders in it.
    """
    found: list[Path] = []
    for folder in folders:
        here = _runs_in(folder)
        if not here:
            raise UserError(
                f"{folder} is no folder of a run or a sweep, and has no runs in it. Try: runs, or runs/SWEEP."
            )
        found += here
    return list(dict.fromkeys(path.absolute() for path in found))


def _runs_in(folder: Path) -> list[Path]:
    from qllm_exp.sweep.record import Sweep

    if (folder / "config.yaml").exists():
        return [folder]
    if (folder / "sweep.json").exists():
        return [one.path for one in Sweep(folder).directories if one.config.exists()]
    return sorted(path.parent for path in folder.glob("*/config.yaml"))
