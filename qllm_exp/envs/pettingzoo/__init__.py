"""Any parallel PettingZoo environment, by its module path."""

from qllm_exp.envs.pettingzoo.env import Config, check, make, tasks

__all__ = ["Config", "check", "make", "tasks"]
