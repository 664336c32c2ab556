"""The training loop: roll out, learn, evaluate, log, checkpoint.

A cycle is one episode in every copy of the environment, then as many updates as the environment steps so far call for, or one
of an algorithm that learns on-policy. Everything that decides the future of a run is in `state_dict` at the end of a cycle.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import RunFailed
from qllm_exp.training.checkpoint import CheckpointStore
from qllm_exp.training.evaluation import EvaluationResult, evaluate
from qllm_exp.training.replay import EpisodeStorage, Experience, ReplayBuffer
from qllm_exp.training.rollout import rollout
from qllm_exp.training.seeds import derive
from qllm_exp.training.timer import Timer

LOG_EVERY = 10_000  # environment steps between rows of training figures

Row = dict[str, Any]


class Interrupted(Exception):
    """The run was asked to stop, and has written a checkpoint."""


class Trainer:
    """One run of an algorithm in an environment.

    Args:
        seed: of the run. write: takes a row of the metrics file and returns the file's size afterwards.
        progress: takes figures for the console and the status file, several times a second at most.
        stop: asked after every cycle; True makes `train` checkpoint and raise Interrupted.
    """

    def __init__(
        self,
        train: TrainConfig,
        env: TeamEnv,
        algorithm: Algorithm,
        seed: int,
        write: Callable[[Row], int],
        progress: Callable[[Row], None],
        stop: Callable[[], bool],
        exact_clock: bool = False,
    ) -> None:
        self.config, self.env, self.algorithm, self.seed = train, env, algorithm, seed
        self.write, self.progress, self.stop = write, progress, stop
        self.buffer = ReplayBuffer(env, env.num_envs if algorithm.on_policy else train.buffer_episodes)
        self.fresh = EpisodeStorage(env, env.num_envs)
        self.explore = torch.Generator(env.device).manual_seed(derive(seed, "exploration"))
        self.pick = torch.Generator().manual_seed(derive(seed, "replay"))
        self.experience = Experience(self.buffer, env.num_envs, self.pick)
        self.clock = Timer(env.device, exact_clock)
        self.env_steps = self.episodes = self.updates = self.called_for = 0
        self.evaluations = self.logs = self.offset = 0
        self.best_return, self.best_policy = -math.inf, algorithm.policy_state_dict()
        self.last_evaluation: float | None = None
        self.recent: dict[str, float] = {}  # sums since the last row of training figures
        self.recent_updates: dict[str, torch.Tensor] = {}
        self.wall_s = 0.0

    # The loop

    def train(self, checkpoints: CheckpointStore) -> None:
        """Train to the end of the budget. Raises Interrupted when asked to stop, RunFailed when a parameter is not finite."""
        begin, before = time.monotonic(), self.wall_s
        while True:
            self._evaluate_if_due()
            self._log_if_due()
            self.wall_s = before + time.monotonic() - begin
            if self.env_steps >= self.config.total_steps:
                return
            stop = self.stop()
            if stop or checkpoints.due():
                checkpoints.save(self.state_dict())
            if stop:
                raise Interrupted
            self.cycle()
            self._report()

    def cycle(self) -> None:
        """One episode in every copy, then the updates that are called for."""
        returns = rollout(self.env, self.algorithm, self.fresh, self.env_steps, self.explore, self.clock)
        with self.clock("store"):
            self.algorithm.observe(self.fresh.reward, self.fresh.mask())
            self.buffer.add(self.fresh)
            steps = int(self.fresh.lengths.sum())
        self.env_steps += steps
        self.episodes += self.env.num_envs
        self._count(returns=float(returns.sum()), episodes=self.env.num_envs, steps=steps)
        due = self.env_steps // self.config.steps_per_update - self.called_for
        self.called_for += due
        if self.algorithm.on_policy:
            due = 1
        elif self.buffer.size < self.config.batch_episodes:
            due = 0
        with self.clock("update"):
            for _ in range(due):
                self._update()

    def _update(self) -> None:
        figures = self.algorithm.update(self.experience)
        for name, value in figures.items():
            known = self.recent_updates.get(name)
            self.recent_updates[name] = value if known is None else known + value
        self.updates += 1
        self._count(updates=1)

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.recent[name] = self.recent.get(name, 0.0) + amount

    # Evaluating and logging

    def evaluate(self, episodes: int, *purpose: str | int) -> EvaluationResult:
        """Evaluate the current parameters on episodes that depend on the run's seed and the purpose only."""
        with self.clock("evaluate"):
            seed = derive(self.seed, *purpose)
            return evaluate(self.env, self.algorithm, self.fresh, episodes, seed, self._report)

    def _evaluate_if_due(self) -> None:
        """Evaluate when a multiple of `evaluation.every` was reached; the rows stand at these multiples for all runs alike."""
        c, total = self.config.evaluation, self.config.total_steps
        grid = [*range(0, total, c.every), total]
        reached = [at for at in grid[self.evaluations :] if at <= self.env_steps]
        if not reached:
            return
        self._check_finite()
        result = self.evaluate(c.episodes, "evaluation", self.evaluations)
        for at in reached:
            self._write({"kind": "evaluation", "env_step": at, "env_step_exact": self.env_steps, **result.row()})
        self.evaluations += len(reached)
        self.last_evaluation = result.return_mean
        if result.return_mean >= self.best_return:
            self.best_return, self.best_policy = result.return_mean, self.algorithm.policy_state_dict()

    def _check_finite(self) -> None:
        """RunFailed where the policy is no longer made of numbers: what it still does would count as a result."""
        if not all(bool(torch.isfinite(one).all()) for one in self.algorithm.policy_state_dict().values()):
            raise RunFailed(
                f"Training diverged: at step {self.env_steps} parameters of the policy are infinite or not numbers. "
                f"Lower train.learning_rate ({self.config.learning_rate:g}), or look for what is not a number in the environment's "
                "states and rewards."
            )

    def _log_if_due(self) -> None:
        if self.env_steps // LOG_EVERY == self.logs or not self.recent:
            return
        self.logs = self.env_steps // LOG_EVERY
        episodes, updates = self.recent["episodes"], self.recent.get("updates", 0.0)
        row = {"kind": "training", "env_step": self.env_steps, "episodes": self.episodes, "updates": self.updates}
        row |= {"return_mean": self.recent["returns"] / episodes, "length_mean": self.recent["steps"] / episodes}
        row |= {name: float(value) / updates for name, value in self.recent_updates.items()}
        row |= self.algorithm.exploration(self.env_steps)
        self._write(row)
        self.recent, self.recent_updates = {}, {}

    def _write(self, row: Row) -> None:
        self.offset = self.write(row | {"wall_s": round(self.wall_s, 3)})

    def _report(self) -> None:
        self.progress({"env_step": self.env_steps, "updates": self.updates, "return": self.last_evaluation})

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the rest of the run, but for the replay buffer, which CheckpointStore keeps."""
        return {
            "algorithm": self.algorithm.state_dict(),
            "env": self.env.state_dict(),
            "explore": self.explore.get_state(),
            "pick": self.pick.get_state(),
            "best_policy": self.best_policy,
            "recent": dict(self.recent),
            "recent_updates": dict(self.recent_updates),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.algorithm.load_state_dict(saved["algorithm"])
        self.env.load_state_dict(saved["env"])
        self.explore.set_state(saved["explore"])
        self.pick.set_state(saved["pick"])
        self.best_policy, self.recent = saved["best_policy"], saved["recent"]
        self.recent_updates = {k: v.to(self.env.device) for k, v in saved["recent_updates"].items()}
        for name in _NUMBERS:
            setattr(self, name, saved[name])


_NUMBERS = (
    *("env_steps", "episodes", "updates", "called_for", "evaluations", "logs", "offset"),
    *("best_return", "last_evaluation", "wall_s"),
)
