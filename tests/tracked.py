"""Runs that are tracked by the stand-in server: how they are asked for, and the environment of whoever talks to it."""

import os
from pathlib import Path

from loopback_wandb import LoopbackWandb

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "integration"  # where environments for tests are
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))  # of the compiled network kernel
SHORT = [
    *("env=matrix", "mixer=vdn", "device=cpu", "train=quick", "env.num_envs=16", "train.hidden=8"),
    *("train.total_steps=40000", "train.evaluation.every=10000", "train.evaluation.episodes=16"),
    *("train.evaluation.absolute_episodes=32", "tracking=wandb", "tracking.project=p", "tracking.finish_s=30"),
]


def environment(server: LoopbackWandb | None, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    named = {"HOME": str(home), "XDG_CACHE_HOME": str(CACHE), "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}:{HERE}"}
    named |= {"HELD_ENV": str(home / "hold")}
    login = {} if server is None else {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
    return kept | named | login
