"""PettingZoo parallel environments, selected by module path."""

from qllm_exp.envs.pettingzoo.env import Config, check, make, tasks, versions

TASKS_ARE_MODULES = True  # see envs.imports_task

__all__ = ["TASKS_ARE_MODULES", "Config", "check", "make", "tasks", "versions"]
