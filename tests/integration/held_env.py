"""A matrix game that pauses in the middle of a run while a file exists, so that a test can act on a running run.

The environment variable HELD_ENV names the file. It is checked after 300 steps, about the middle of a short run.
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
    original_step, calls = env.step, 0

    def step(actions):
        nonlocal calls
        calls += 1
        while calls > 300 and Path(os.environ.get("HELD_ENV", "/nowhere")).exists():
            time.sleep(0.02)
        return original_step(actions)

    env.step = step
    return env
