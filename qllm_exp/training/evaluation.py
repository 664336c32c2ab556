"""Evaluation: episodes without exploration that do not affect training."""

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
    """Results of evaluation episodes.

    Attributes:
        returns: Undiscounted return of each episode, in the environment's reward unit.
        lengths: Steps of each episode.
        metrics: Means of the environment's additional metrics, e.g. {'win': 0.4}.
    """

    returns: list[float]
    lengths: list[int]
    metrics: dict[str, float]

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return sum(self.returns) / len(self.returns)

    def row(self) -> dict[str, float | int]:
        """Metrics of a row of the metrics file."""
        count, mean = len(self.returns), self.return_mean
        variance = sum((value - mean) ** 2 for value in self.returns) / count
        row = {
            "return_mean": mean,
            "return_std": variance**0.5,
            "length_mean": sum(self.lengths) / count,
            "episodes": count,
        }
        return row | {f"{name}_mean": value for name, value in self.metrics.items()}


def evaluate(
    env: TeamEnv,
    algorithm: Algorithm,
    storage: EpisodeStorage,
    episodes: int,
    seed: int,
    on_rollout: Callable[[], None],
) -> EvaluationResult:
    """Evaluate the current parameters, and restore the state of the environment afterwards.

    Args:
        env: The environment.
        algorithm: Chooses the actions.
        storage: Room for one episode per environment copy; overwritten.
        episodes: Number of episodes.
        seed: Determines the episodes.
        on_rollout: Called after every rollout.
    """
    saved = env.state_dict()
    env.seed(seed)
    generator = torch.Generator(env.device).manual_seed(seed)
    timer = Timer(env.device)
    returns: list[float] = []
    lengths: list[int] = []
    metrics: dict[str, list[float]] = {}
    while len(returns) < episodes:
        returns += rollout(env, algorithm, storage, None, generator, timer).tolist()
        lengths += storage.lengths.tolist()
        for name, values in env.episode_metrics().items():
            metrics.setdefault(name, []).extend(values.tolist())
        on_rollout()
    env.load_state_dict(saved)
    means = {name: sum(values[:episodes]) / episodes for name, values in metrics.items()}
    return EvaluationResult(returns[:episodes], lengths[:episodes], means)
