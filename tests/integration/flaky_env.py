"""A user's own environment: a matrix game that fails after 30 steps, in the way that `env.fault` names.

With the environment variable FLAKY_ENV_IS_WELL it does not fail. FLAKY_ENV_PAUSE adds that many seconds of sleep to every step;
if FLAKY_ENV_FAST names a file, only until that file exists. FLAKY_ENV_HANDICAP is subtracted from every reward once for each copy
of `env.num_envs` above 16, which makes that setting a bad one (any other option of an environment makes another task).
"""

import os
import signal
import time
from dataclasses import dataclass

from qllm_exp.envs import matrix
from qllm_exp.envs.matrix import Config as MatrixConfig


@dataclass
class Config(MatrixConfig):
    name: str = "flaky_env"
    fault: str = ""  # raise | exit | kill; anything else: no failure


def tasks():
    return matrix.tasks()


def check(config):
    matrix.check(config)


def make(config, num_envs, seed, device):
    env = matrix.make(config, num_envs, seed, device)
    original_step, calls = env.step, 0
    fault = "" if "FLAKY_ENV_IS_WELL" in os.environ else config.fault
    pause, fast = float(os.environ.get("FLAKY_ENV_PAUSE", 0)), os.environ.get("FLAKY_ENV_FAST", "")
    handicap = float(os.environ.get("FLAKY_ENV_HANDICAP", 0)) * (config.num_envs - 16)

    def step(actions):
        nonlocal calls
        calls += 1
        if pause and not (fast and os.path.exists(fast)):
            time.sleep(pause)
        if calls > 30 and fault == "raise":
            raise RuntimeError("the simulator says no")
        if calls > 30 and fault == "exit":
            os._exit(9)
        if calls > 30 and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        played = original_step(actions)
        return played._replace(reward=played.reward - handicap)

    env.step = step
    return env
