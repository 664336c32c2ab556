"""`python -m qllm_exp.results sync FOLDER...`: send to Weights & Biases what it lacks of runs."""

import argparse
import subprocess
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.sweep.record import run_folders
from qllm_exp.tracking.run_dir import CONFIG

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

    folders = [one for folder in options.folders for one in run_folders(folder) if (one / CONFIG).exists()]
    if not login.logged_in():
        raise UserError(f"{login.HOW.format(server=login.server())}.")
    switches = ["--all"] * options.all + ["--adopt"] * options.adopt + ["--timeout", str(options.timeout)]
    names = "".join(f"{path}\n" for path in dict.fromkeys(folders))
    return subprocess.run(
        mirror.command("--once", *switches), input=names, text=True, env=mirror.environment(), check=False
    ).returncode
