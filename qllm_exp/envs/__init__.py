"""Environments, found by name: `env.name=lbf` is the module `qllm_exp.envs.lbf`; a name with a dot is the user's own.

Each module has `make(config, num_envs, seed, device) -> TeamEnv`, where config is the `env` group of the run's
configuration as a plain dataclass (schema.py); `check(config)`, which raises a UserError for an unknown task or a missing
package without building anything; and `tasks() -> list[str]`, the tasks it knows.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

import torch

from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import UserError, nearest

__all__ = ["Observation", "StateField", "StateLayout", "Step", "TaskDescription", "TeamEnv", "env_module", "make_env"]

_NOT_ENVIRONMENTS = {"base", "layout"}


def env_names() -> list[str]:
    """Names of the environments that ship with the package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_ENVIRONMENTS and m.name[0] != "_")


def env_module(name: str) -> ModuleType:
    """The module of an environment: one that ships with the package, or, for a name with a dot, any importable one."""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"env.name={name!r} cannot be imported: {error}. Is its folder on PYTHONPATH?") from error
    if name not in env_names():
        raise UserError(f"env={name!r} is unknown.{nearest(name, env_names())} Allowed: {', '.join(env_names())}.")
    return importlib.import_module(f"{__name__}.{name}")


def make_env(config: Any, num_envs: int, seed: int, device: torch.device | str = "cpu") -> TeamEnv:
    """Build the environment that `config.name` and `config.task` name, with `num_envs` copies on `device`."""
    env: TeamEnv = env_module(config.name).make(config, num_envs, seed, torch.device(device))
    return env
