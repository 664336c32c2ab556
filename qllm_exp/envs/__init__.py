"""Environments, found by name: `env.name=lbf` is the module `qllm_exp.envs.lbf`; any other name is a module of the user's own.

Each module has `make(config, num_envs, seed, device) -> TeamEnv`, where config is the `env` group of the run's
configuration as a plain dataclass (schema.py); `check(config)`, which raises a UserError for an unknown task or a missing
package without building anything; and `tasks() -> list[str]`, the tasks it knows.
"""

from types import ModuleType
from typing import Any

import torch

from qllm_exp.config import registry
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription

__all__ = ["Observation", "StateField", "StateLayout", "Step", "TaskDescription", "TeamEnv", "env_module", "make_env"]


def env_module(name: str) -> ModuleType:
    """The module of an environment; UserError when there is none of that name."""
    return registry.find("env", name)


def make_env(config: Any, num_envs: int, seed: int, device: torch.device | str = "cpu") -> TeamEnv:
    """Build the environment that `config.name` and `config.task` name, with `num_envs` copies on `device`."""
    env: TeamEnv = env_module(config.name).make(config, num_envs, seed, torch.device(device))
    return env
