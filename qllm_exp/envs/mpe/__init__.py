"""Particle environments: VMAS's (simple_spread, simple_tag, ..., and every other scenario), and three by PettingZoo's rules."""

from qllm_exp.envs.mpe.env import Config, check, make, tasks, versions

__all__ = ["Config", "check", "make", "tasks", "versions"]
