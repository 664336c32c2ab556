"""The training loop: rollouts, updates, evaluation, logging, checkpoints.

A cycle is one episode in every environment copy, followed by the updates that are due by the number of environment steps, or by
one update of an algorithm that learns on-policy. At the end of a cycle `state_dict` holds everything that determines the rest
of the run, except the replay buffer, which the checkpoint stores separately.
"""

import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import DIVERGED, RunFailed
from qllm_exp.runs.metrics import MetricsRow
from qllm_exp.training.checkpoint import CheckpointStore
from qllm_exp.training.evaluation import EvaluationResult, evaluate
from qllm_exp.training.replay import EpisodeStorage, Experience, ReplayBuffer
from qllm_exp.training.rollout import rollout
from qllm_exp.training.seeds import derive
from qllm_exp.training.timer import Timer

LOG_EVERY = 10_000  # environment steps between rows of training metrics

# Attributes of Trainer that are part of its state_dict under their own names.
_COUNTERS = (
    "env_steps",
    "episodes",
    "updates",
    "called_for",
    "evaluations",
    "logs",
    "offset",
    "best_return",
    "last_evaluation",
    "wall_s",
)


class Interrupted(Exception):
    """The run stopped on request, after writing a checkpoint."""


class Trainer:
    """Trains one algorithm in one environment.

    Args:
        train: The `train` group.
        env: The environment.
        algorithm: The algorithm, with its initial parameters.
        seed: Seed of the run.
        write: Appends a row to the metrics file and returns the size of the file afterwards.
        progress: Receives metrics for the console and the status file after every cycle and evaluation rollout.
        stop: Called after every cycle; if it returns True, `train` writes a checkpoint and raises Interrupted.
        exact_timer: Whether `timer` waits for a GPU at the start and the end of each part, which slows down the run.

    Attributes:
        buffer: The replay buffer.
        timer: Time spent in each part of the run.
        env_steps: Environment steps so far.
        episodes: Episodes so far.
        updates: Updates so far.
        checkpoint_step: Environment steps of the last checkpoint; 0 before the first.
        called_for: Updates that the environment steps so far call for, whether or not the buffer had enough episodes for them.
        offset: Size of the metrics file after the last row.
        best_return: Best mean return of an evaluation so far.
        best_policy: Policy parameters of that evaluation.
        last_evaluation: Mean return of the last evaluation; None before the first.
        wall_s: Seconds of training so far, over all resumes.
    """

    def __init__(
        self,
        train: TrainConfig,
        env: TeamEnv,
        algorithm: Algorithm,
        seed: int,
        write: Callable[[MetricsRow], int],
        progress: Callable[[dict[str, Any]], None],
        stop: Callable[[], bool],
        exact_timer: bool = False,
    ) -> None:
        self.config, self.env, self.algorithm, self.seed = train, env, algorithm, seed
        self.write, self.progress, self.stop = write, progress, stop
        self.buffer = ReplayBuffer(env, env.num_envs if algorithm.on_policy else train.buffer_episodes)
        self.rollout_storage = EpisodeStorage(env, env.num_envs)
        self.exploration_rng = torch.Generator(env.device).manual_seed(derive(seed, "exploration"))
        self.replay_rng = torch.Generator().manual_seed(derive(seed, "replay"))
        self.experience = Experience(self.buffer, env.num_envs, self.replay_rng)
        self.timer = Timer(env.device, exact_timer)
        self.env_steps = self.episodes = self.updates = self.called_for = 0
        self.evaluations = self.logs = self.offset = self.checkpoint_step = 0
        self.best_return, self.best_policy = -math.inf, algorithm.policy_state_dict()
        self.last_evaluation: float | None = None
        self.recent: dict[str, float] = {}  # sums since the last row of training metrics
        self.recent_updates: dict[str, torch.Tensor] = {}  # sums of update metrics since then
        self.wall_s = 0.0

    # The loop

    def train(self, checkpoints: CheckpointStore) -> None:
        """Train until the budget of environment steps is used up.

        Args:
            checkpoints: Where checkpoints are written.

        Raises:
            Interrupted: `stop` returned True.
            RunFailed: A policy parameter is NaN or infinite.
        """
        start, earlier_s = time.monotonic(), self.wall_s
        while True:
            self._evaluate_if_due()
            self._log_if_due()
            self.wall_s = earlier_s + time.monotonic() - start
            if self.env_steps >= self.config.total_steps:
                return
            stop = self.stop()
            if stop or checkpoints.due():
                checkpoints.save(self.state_dict())
                self.checkpoint_step = self.env_steps
                self._report()
            if stop:
                raise Interrupted
            self.cycle()
            self._report()

    def cycle(self) -> None:
        """Play one episode in every environment copy, then perform the updates that are due."""
        storage = self.rollout_storage
        returns = rollout(self.env, self.algorithm, storage, self.env_steps, self.exploration_rng, self.timer)
        with self.timer("store"):
            self.algorithm.observe(storage.reward, storage.mask())
            self.buffer.add(storage)
            steps = int(storage.lengths.sum())
        self.env_steps += steps
        self.episodes += self.env.num_envs
        self._count(returns=float(returns.sum()), episodes=self.env.num_envs, steps=steps)
        metrics = {f"{name}_mean": float(values.sum()) for name, values in self.env.episode_metrics().items()}
        self._count(reported=self.env.num_envs, **metrics)
        due = self.env_steps // self.config.steps_per_update - self.called_for
        self.called_for += due
        if self.algorithm.on_policy:
            due = 1
        elif self.buffer.size < self.config.batch_episodes:
            due = 0
        with self.timer("update"):
            for _ in range(due):
                self._update()

    def _update(self) -> None:
        metrics = self.algorithm.update(self.experience)
        for name, value in metrics.items():
            total = self.recent_updates.get(name)
            self.recent_updates[name] = value if total is None else total + value
        self.updates += 1
        self._count(updates=1)

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.recent[name] = self.recent.get(name, 0.0) + amount

    # Evaluation and logging

    def evaluate(self, episodes: int, *purpose: str | int) -> EvaluationResult:
        """Evaluate the current parameters.

        Args:
            episodes: Number of episodes.
            purpose: Determines the episodes, together with the seed of the run.
        """
        with self.timer("evaluate"):
            seed = derive(self.seed, *purpose)
            return evaluate(self.env, self.algorithm, self.rollout_storage, episodes, seed, self._report)

    def _evaluate_if_due(self) -> None:
        """Evaluate once a multiple of `evaluation.every` is reached. Rows carry these multiples, so that runs are comparable."""
        c, total = self.config.evaluation, self.config.total_steps
        grid = [*range(0, total, c.every), total]
        reached = [env_step for env_step in grid[self.evaluations :] if env_step <= self.env_steps]
        if not reached:
            return
        self._check_finite()
        result = self.evaluate(c.episodes, "evaluation", self.evaluations)
        for env_step in reached:
            row = {"kind": "evaluation", "env_step": env_step, "env_step_exact": self.env_steps, **result.row()}
            self._write(row)
        self.evaluations += len(reached)
        self.last_evaluation = result.return_mean
        if result.return_mean >= self.best_return:
            self.best_return, self.best_policy = result.return_mean, self.algorithm.policy_state_dict()

    def _check_finite(self) -> None:
        """Raise RunFailed if a policy parameter is NaN or infinite, because its returns would count as results."""
        parameters = self.algorithm.policy_state_dict().values()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise RunFailed(
                f"{DIVERGED}: at step {self.env_steps} parameters of the policy are NaN or infinite. "
                f"Lower train.learning_rate ({self.config.learning_rate:g}), or check the environment's states and rewards "
                "for NaN."
            )

    def _log_if_due(self) -> None:
        if self.env_steps // LOG_EVERY == self.logs or not self.recent:
            return
        self.logs = self.env_steps // LOG_EVERY
        episodes, updates = self.recent["episodes"], self.recent.get("updates", 0.0)
        row: dict[str, Any] = {
            "kind": "training",
            "env_step": self.env_steps,
            "episodes": self.episodes,
            "updates": self.updates,
            "return_mean": self.recent["returns"] / episodes,
            "length_mean": self.recent["steps"] / episodes,
        }
        # Fewer episodes after a resume from a checkpoint of a version that did not count what they report.
        row |= {name: total / self.recent["reported"] for name, total in self.recent.items() if name.endswith("_mean")}
        row |= {name: float(total) / updates for name, total in self.recent_updates.items()}
        row |= self.algorithm.exploration(self.env_steps)
        self._write(row)
        self.recent, self.recent_updates = {}, {}

    def _write(self, row: dict[str, Any]) -> None:
        self.offset = self.write(cast(MetricsRow, row | {"wall_s": round(self.wall_s, 3)}))

    def _report(self) -> None:
        self.progress(
            {
                "env_step": self.env_steps,
                "checkpoint_step": self.checkpoint_step,
                "updates": self.updates,
                "return": self.last_evaluation,
            }
        )

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that determines the rest of the run, except the replay buffer, which CheckpointStore saves."""
        return {
            "algorithm": self.algorithm.state_dict(),
            "env": self.env.state_dict(),
            "explore": self.exploration_rng.get_state(),
            "pick": self.replay_rng.get_state(),
            "best_policy": self.best_policy,
            "recent": dict(self.recent),
            "recent_updates": dict(self.recent_updates),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.algorithm.load_state_dict(saved["algorithm"])
        self.env.load_state_dict(saved["env"])
        self.exploration_rng.set_state(saved["explore"])
        self.replay_rng.set_state(saved["pick"])
        self.best_policy, self.recent = saved["best_policy"], saved["recent"]
        self.recent_updates = {name: total.to(self.env.device) for name, total in saved["recent_updates"].items()}
        for name in _COUNTERS:
            setattr(self, name, saved[name])
        self.checkpoint_step = self.env_steps
