"""An environment of a user's own, from outside the package: a matrix game in which an option decides how the run ends.

FLAKY_ENV_IS_WELL in the environment cures it; FLAKY_ENV_PAUSE makes every step take so many seconds more, without computing.
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
    fault: str = ""  # raise | exit | kill; any other word is no fault


def tasks():
    return matrix.tasks()


def check(config):
    matrix.check(config)


def make(config, num_envs, seed, device):
    env = matrix.make(config, num_envs, seed, device)
    proper, calls = env.step, 0
    fault = "" if "FLAKY_ENV_IS_WELL" in os.environ else config.fault
    pause = float(os.environ.get("FLAKY_ENV_PAUSE", 0))

    def step(actions):
        nonlocal calls
        calls += 1
        time.sleep(pause)
        if calls > 30 and fault == "raise":
            raise RuntimeError("the simulator says no")
        if calls > 30 and fault == "exit":
            os._exit(9)
        if calls > 30 and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return proper(actions)

    env.step = step
    return env
