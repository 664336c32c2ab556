"""Overrides of short runs that the stand-in W&B server tracks, and the environment of processes that talk to it."""

import os
from pathlib import Path

from loopback_wandb import LoopbackWandb

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
    "train.total_steps=40000",
    "train.evaluation.every=10000",
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
