"""Google Research Football, driven through its engine in worker processes."""

from qllm_exp.envs.grf.env import check, make, tasks

__all__ = ["check", "make", "tasks"]
