"""The training loop: the ratio of steps to updates, the evaluation grid, and resuming as if never stopped."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from qllm_exp.algorithms import make_algorithm
from qllm_exp.config import registry, schema
from qllm_exp.config.load import config_class
from qllm_exp.envs import make_env
from qllm_exp.errors import RunFailed
from qllm_exp.mixers import make_mixer
from qllm_exp.training.checkpoint import CheckpointStore
from qllm_exp.training.trainer import Interrupted, Trainer


def small_run(
    env="lbf", mixer="qmix", num_envs=4, algorithm="q_learning", episode_limit=0, **train
) -> schema.RunConfig:
    settings = {"total_steps": 1500, "steps_per_update": 100, "batch_episodes": 4, "buffer_episodes": 10, "hidden": 8}
    evaluation = schema.EvaluationConfig(every=500, episodes=6, absolute_episodes=8)
    return schema.RunConfig(
        env=config_class("env", env)(num_envs=num_envs, **({"episode_limit": episode_limit} if episode_limit else {})),
        algorithm=config_class("algorithm", algorithm)(),
        mixer=config_class("mixer", mixer)(),
        train=schema.TrainConfig(**(settings | {"evaluation": evaluation} | train)),
    )


# Episodes of 10 steps: eight rollouts, two updates after each, and an evaluation after every other.
SHORT = {
    "episode_limit": 10,
    "total_steps": 320,
    "steps_per_update": 20,
    "evaluation": schema.EvaluationConfig(every=100, episodes=6, absolute_episodes=8),
}


class Bench:
    """A trainer that keeps its rows in a list and can be stopped after a number of cycles."""

    def __init__(self, run: schema.RunConfig, folder: Path, stop_after: int = 10**9) -> None:
        self.rows: list[dict] = []
        self.cycles, self.stop_after = -1, stop_after
        env = make_env(run.env, run.env.num_envs, 0)
        torch.manual_seed(run.seed)
        algorithm = make_algorithm(run, env, make_mixer(run.mixer, env))
        self.trainer = Trainer(run.train, env, algorithm, run.seed, self.write, lambda _: None, self.stop)
        self.store = CheckpointStore(folder, self.trainer.buffer, 1e9, 1.0)
        saved = self.store.load()
        if saved is not None:
            self.trainer.load_state_dict(saved)

    def write(self, row: dict) -> int:
        self.rows.append({k: v for k, v in json.loads(json.dumps(row)).items() if k != "wall_s"})
        return len(self.rows)

    def stop(self) -> bool:
        self.cycles += 1
        return self.cycles >= self.stop_after


@pytest.mark.parametrize(
    ("env", "mixer"), [("lbf", "qmix"), ("mpe", "vdn"), ("matrix", "none"), ("pettingzoo", "qmix")]
)
@pytest.mark.parametrize("extra", [{}, {"standardise_rewards": True}], ids=["raw", "standardised"])
def test_stopped_after_every_cycle_and_resumed_is_bit_for_bit_the_same(tmp_path, monkeypatch, env, mixer, extra):
    check_resuming(small_run(env, mixer, **SHORT, **extra), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [name for name in registry.choices("algorithm") if name != "q_learning"])
@pytest.mark.parametrize("env", ["lbf", "matrix"])
@pytest.mark.parametrize(
    "extra",
    [{}, {"network": "mlp", "share_parameters": False, "standardise_rewards": False}],
    ids=["shared", "separate"],
)
def test_every_algorithm_resumes_bit_for_bit(tmp_path, monkeypatch, algorithm, env, extra):
    check_resuming(small_run(env, "none", algorithm=algorithm, **SHORT, **extra), tmp_path, monkeypatch)


def check_resuming(run, tmp_path, monkeypatch):
    """A run that is interrupted and resumed after every cycle has the rows and parameters of an uninterrupted run."""
    monkeypatch.setattr("qllm_exp.training.trainer.LOG_EVERY", 60)
    uninterrupted = Bench(run, tmp_path / "whole")
    uninterrupted.trainer.train(uninterrupted.store)

    rows: list[dict] = []
    while True:
        interrupted = Bench(run, tmp_path / "parts", stop_after=1)
        try:
            interrupted.trainer.train(interrupted.store)
        except Interrupted:
            rows += interrupted.rows
            continue
        rows += interrupted.rows
        break
    assert rows == uninterrupted.rows and len(rows) > 6
    for name, value in uninterrupted.trainer.algorithm.policy_state_dict().items():
        assert torch.equal(value, interrupted.trainer.algorithm.policy_state_dict()[name])


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_the_ratio_of_steps_to_updates_does_not_depend_on_the_number_of_copies(tmp_path, num_envs):
    bench = Bench(small_run("matrix", num_envs=num_envs, total_steps=4000, buffer_episodes=50), tmp_path)
    bench.trainer.train(bench.store)
    before_the_first_batch = -(-4 // num_envs) * num_envs * 25  # steps until four episodes are there
    expected = bench.trainer.env_steps // 100 - (before_the_first_batch // 100 if num_envs < 4 else 0)
    assert abs(bench.trainer.updates - expected) <= 1


def test_evaluations_stand_at_the_same_steps_for_any_number_of_copies(tmp_path):
    grids = []
    for num_envs in (2, 16, 50):
        bench = Bench(small_run("matrix", num_envs=num_envs, batch_episodes=2), tmp_path / str(num_envs))
        bench.trainer.train(bench.store)
        rows = [row for row in bench.rows if row["kind"] == "evaluation"]
        grids.append([row["env_step"] for row in rows])
        assert all(row["env_step_exact"] >= row["env_step"] and row["episodes"] == 6 for row in rows)
    assert grids == [[0, 500, 1000, 1500]] * 3


def test_a_training_row_has_the_mean_of_what_the_environment_reports_of_its_episodes(tmp_path, monkeypatch):
    bench = Bench(small_run(num_envs=4, total_steps=25_000, steps_per_update=5000), tmp_path)
    rollouts = itertools.count(1)
    monkeypatch.setattr(bench.trainer.env, "episode_metrics", lambda: {"win": torch.full((4,), float(next(rollouts)))})
    monkeypatch.setattr(bench.trainer, "_evaluate_if_due", lambda: None)  # it would ask the environment, too
    bench.trainer.train(bench.store)
    rows = [row for row in bench.rows if row["kind"] == "training"]
    ends = [0, *(row["episodes"] // 4 for row in rows)]
    assert len(rows) == 2 and [row["win_mean"] for row in rows] == [
        (first + 1 + last) / 2 for first, last in itertools.pairwise(ends)
    ]


def test_a_checkpoint_that_has_not_counted_them_spoils_no_mean(tmp_path, monkeypatch):
    bench = Bench(small_run(num_envs=4, total_steps=12_000, steps_per_update=5000), tmp_path)
    bench.trainer.recent = {"returns": 0.0, "episodes": 400, "steps": 0}  # as an older version left it
    monkeypatch.setattr(bench.trainer.env, "episode_metrics", lambda: {"win": torch.full((4,), 0.5)})
    monkeypatch.setattr(bench.trainer, "_evaluate_if_due", lambda: None)
    bench.trainer.train(bench.store)
    assert [row["win_mean"] for row in bench.rows if row["kind"] == "training"] == [0.5]


def test_evaluation_does_not_affect_training(tmp_path):
    often = Bench(small_run("lbf", **SHORT), tmp_path / "often")
    seldom = SHORT | {"evaluation": schema.EvaluationConfig(10**6, 1, 1)}
    rarely = Bench(small_run("lbf", **seldom), tmp_path / "rarely")
    for bench in (often, rarely):
        bench.trainer.train(bench.store)
    often_policy, rarely_policy = (b.trainer.algorithm.policy_state_dict() for b in (often, rarely))
    assert all(torch.equal(often_policy[k], rarely_policy[k]) for k in often_policy)
    assert len(often.rows) > len(rarely.rows)


@pytest.mark.parametrize("algorithm", ["q_learning", "mappo"])
def test_a_run_whose_parameters_are_not_finite_fails(tmp_path, algorithm):
    mixer = "qmix" if algorithm == "q_learning" else "none"
    bench = Bench(small_run("lbf", mixer, algorithm=algorithm, learning_rate=1e30), tmp_path)
    with pytest.raises(RunFailed, match=r"diverged: at step \d+ .* Lower train\.learning_rate \(1e\+30\)"):
        bench.trainer.train(bench.store)


def test_seeds_differ_and_equal_seeds_agree(tmp_path):
    def policy(seed: int, name: str) -> torch.Tensor:
        run = small_run("matrix")
        run.seed = seed
        bench = Bench(run, tmp_path / name)
        bench.trainer.train(bench.store)
        return torch.cat([v.flatten() for v in bench.trainer.algorithm.policy_state_dict().values()])

    assert torch.equal(policy(3, "a"), policy(3, "b"))
    assert not torch.equal(policy(3, "c"), policy(4, "d"))
