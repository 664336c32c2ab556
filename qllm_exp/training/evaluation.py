"""Evaluation: episodes without exploration that leave no trace in training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.rollout import rollout
from qllm_exp.training.timer import Timer


@dataclass(frozen=True)
class EvaluationResult:
    """Figures over episodes. `returns` are undiscounted, in the environment's own reward unit."""

    returns: list[float]
    lengths: list[int]
    metrics: dict[str, float]  # further figures of the environment, averaged, e.g. {'win': 0.4}

    @property
    def return_mean(self) -> float:
        return sum(self.returns) / len(self.returns)

    def row(self) -> dict[str, float | int]:
        """What goes into the metrics file."""
        n, mean = len(self.returns), self.return_mean
        variance = sum((r - mean) ** 2 for r in self.returns) / n
        figures = {
            "return_mean": mean,
            "return_std": variance**0.5,
            "length_mean": sum(self.lengths) / n,
            "episodes": n,
        }
        return figures | {f"{name}_mean": value for name, value in self.metrics.items()}


def evaluate(
    env: TeamEnv, algorithm: Algorithm, scratch: EpisodeStorage, episodes: int, seed: int, alive: Callable[[], None]
) -> EvaluationResult:
    """Play `episodes` episodes with the current parameters, and put the environment back to where it was.

    Args:
        scratch: room for one episode per copy; overwritten.
        seed: decides the episodes. alive: called after every rollout.
    """
    saved = env.state_dict()
    env.seed(seed)
    generator = torch.Generator(env.device).manual_seed(seed)
    clock = Timer(env.device)
    returns: list[float] = []
    lengths: list[int] = []
    metrics: dict[str, list[float]] = {}
    while len(returns) < episodes:
        total = rollout(env, algorithm, scratch, None, generator, clock)
        returns += total.tolist()
        lengths += scratch.lengths.tolist()
        for name, values in env.episode_metrics().items():
            metrics.setdefault(name, []).extend(values.tolist())
        alive()
    env.load_state_dict(saved)
    means = {name: sum(values[:episodes]) / episodes for name, values in metrics.items()}
    return EvaluationResult(returns[:episodes], lengths[:episodes], means)
