"""An environment of a user's own, from outside the package: a matrix game in which an option decides how the run ends."""

import os
import signal
from dataclasses import dataclass

from qllm_exp import schema
from qllm_exp.envs import matrix


@dataclass
class Config(schema.Matrix):
    name: str = "flaky_env"
    fault: str = ""


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
        if calls > 30 and config.fault == "raise":
            raise RuntimeError("the simulator says no")
        if calls > 30 and config.fault == "exit":
            os._exit(9)
        if calls > 30 and config.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return proper(actions)

    env.step = step
    return env
