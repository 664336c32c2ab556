"""A matrix game that stands still in the middle of a run for as long as a file is there, so that a test can do something to it.

HELD_ENV names the file. It is looked for from the thousandth step of all copies together on, about the middle of a short run.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from qllm_exp.envs import matrix
from qllm_exp.envs.matrix import Config as MatrixConfig


@dataclass
class Config(MatrixConfig):
    name: str = "held_env"


def tasks():
    return matrix.tasks()


def check(config):
    matrix.check(config)


def make(config, num_envs, seed, device):
    env = matrix.make(config, num_envs, seed, device)
    proper, calls = env.step, 0

    def step(actions):
        nonlocal calls
        calls += 1
        while calls > 1000 and Path(os.environ.get("HELD_ENV", "/nowhere")).exists():
            time.sleep(0.02)
        return proper(actions)

    env.step = step
    return env
