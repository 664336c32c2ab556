"""Google Research Football: the real engine in a worker process."""

from qllm_exp.envs.grf.env import Config, check, make, tasks, versions

__all__ = ["Config", "check", "make", "tasks", "versions"]
