"""Short runs that the stand-in W&B server tracks: their overrides, their environment, and their upload afterwards."""

import contextlib
import io
import os
import sys
from pathlib import Path

import commands
import pytest
from loopback_wandb import LoopbackWandb

from qllm_exp.results import commands as results_commands
from qllm_exp.results.__main__ import main
from qllm_exp.tracking import wandb_login

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "tests" / "integration"  # has environments for tests
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))  # of the compiled network kernel
SHORT = [
    "env=matrix",
    "mixer=vdn",
    "device=cpu",
    "train=quick",
    "env.num_envs=16",
    "train.hidden=8",
    "train.total_steps=10000",
    "train.evaluation.every=1250",
    "train.evaluation.episodes=16",
    "train.evaluation.absolute_episodes=32",
    "tracking=wandb",
    "tracking.project=p",
    "tracking.finish_s=30",
]


def environment(server: LoopbackWandb | None, home: Path) -> dict[str, str]:
    """Environment variables of a process.

    Args:
        server: that it has credentials for; None: it has none.
        home: its home folder; environments for tests wait while home/hold exists.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    variables |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(CACHE),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}:{ENVS}",
        "HELD_ENV": str(home / "hold"),
    }
    if server is not None:
        variables |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
    return variables


def sync(server: LoopbackWandb, home: Path, *arguments: object) -> tuple[int, str]:
    """Run `python -m qllm_exp.results sync` in this process, and fork the process that it starts.

    Args:
        server: as of `environment`.
        home: its home and working folder.
        arguments: of the command.

    Returns:
        The exit code, and all that it prints.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "stderr", out)
        patch.setattr(os, "environ", environment(server, home))
        patch.setattr(results_commands, "subprocess", commands.Subprocess("wandb"))
        patch.chdir(home)
        forget_login()
        code = main(["sync", *map(str, arguments)])
    forget_login()
    return code, out.getvalue()


def forget_login() -> None:
    """Forget the credentials that this process has read, so that it reads them again."""
    wandb_login.logged_in.cache_clear()
    wandb_login.server.cache_clear()
