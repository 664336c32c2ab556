"""PettingZoo parallel environments, selected by module path."""

from qllm_exp.envs.pettingzoo.env import Config, check, make, tasks

__all__ = ["Config", "check", "make", "tasks"]
