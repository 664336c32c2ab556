"""Environments, selected by name: `env.name=lbf` is the module `qllm_exp.envs.lbf`; any other name is a user's own module.

Each module defines:

- `Config`: the options of the `env` group, a dataclass derived from `schema.EnvConfig`.
- `make(config, num_envs, seed, device) -> TeamEnv`: build the environment.
- `check(config)`: raise UserError for an unknown task or a missing package, without building anything.
- `tasks() -> list[str]`: the tasks that the module knows.
- `TASKS_ARE_MODULES`: optional; True if any Python module may be a task.
- `versions(config) -> dict[str, str]`: optional; versions of the simulator's packages and compiled parts, by name. A run records
  them, and is marked where it is resumed with others.
"""

from types import ModuleType
from typing import Any

import torch

from qllm_exp.config import registry
from qllm_exp.envs import contract
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.envs.observation_state import ObservationState

__all__ = [
    "Observation",
    "StateField",
    "StateLayout",
    "Step",
    "TaskDescription",
    "TeamEnv",
    "env_module",
    "env_versions",
    "imports_task",
    "make_env",
]


def env_module(name: str) -> ModuleType:
    """Return the module of an environment.

    Args:
        name: a shipped environment ('lbf'), or an importable module of the user's own.

    Raises:
        UserError: no environment has that name.
    """
    return registry.find("env", name)


def imports_task(name: str, task: str) -> bool:
    """Whether opening a task imports a module that this package does not know: ask the user before a file names one.

    Args:
        name: an environment. A user's own is not opened to ask it.
        task: a task of it.
    """
    if name not in registry.choices("env"):
        return False
    module = env_module(name)
    return getattr(module, "TASKS_ARE_MODULES", False) and task not in module.tasks()


def make_env(config: Any, num_envs: int, seed: int, device: torch.device | str = "cpu") -> TeamEnv:
    """Build an environment.

    Args:
        config: the `Config` of the environment's module; `config.name` selects the module, `config.task` the task.
        num_envs: number of parallel copies.
        seed: seed of the environment's own random numbers.
        device: device of all tensors.

    Raises:
        UserError: there is no such environment or task, a package is missing, the environment breaks the contract, or
            `config.state` is 'observations' and they cannot be a global state.
    """
    env: TeamEnv = env_module(config.name).make(config, num_envs, seed, torch.device(device))
    contract.check_sizes(env, config.name, num_envs)
    if config.state == ObservationState.state_kind:
        env = ObservationState(env)
    return env


def env_versions(config: Any) -> dict[str, str]:
    """Return the versions of the simulator of an environment, by name; those of packages that are not installed are left out.

    Args:
        config: the `Config` of the environment's module.

    Raises:
        UserError: there is no such environment.
    """
    read_versions = getattr(env_module(config.name), "versions", None)
    if read_versions is None:
        return {}
    return {str(name): str(version) for name, version in read_versions(config).items() if version}
