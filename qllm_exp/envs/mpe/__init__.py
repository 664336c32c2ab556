"""VMAS tasks: the particle worlds (simple_spread, simple_adversary, simple_tag, ...) and every other VMAS scenario."""

from qllm_exp.envs.mpe.env import Config, check, make, tasks, versions

__all__ = ["Config", "check", "make", "tasks", "versions"]
