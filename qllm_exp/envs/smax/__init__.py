"""SMAX: battles of two teams of units by the rules of jaxmarl 0.2.0, without JAX."""

from qllm_exp.envs.smax.env import Config, check, make, tasks

__all__ = ["Config", "check", "make", "tasks"]
