"""Any parallel PettingZoo environment, by its module path."""

from qllm_exp.envs.pettingzoo.env import check, make, tasks

__all__ = ["check", "make", "tasks"]
