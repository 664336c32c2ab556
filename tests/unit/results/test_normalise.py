"""Scores on one scale, with known bounds or bounds from the data, and a note on which."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qllm_exp.envs.matrix import PAYOFFS
from qllm_exp.results.records.reader import Record
from qllm_exp.results.statistics import sample_units
from qllm_exp.results.statistics.normalise import known_bounds, normalise


def record(task: str, method: str, seed: int, returns: tuple[float, ...], **env: Any) -> Record:
    settings = {f"env.{key}": value for key, value in env.items()}
    result = {"final_return": returns[-1], "absolute_return": max(returns)}
    path = Path(f"{task}/{method}/{seed}/{sorted(env.items())}")
    return Record(path, task, method, seed, settings, tuple(range(len(returns))), returns, result)


@pytest.mark.parametrize("task", sorted(PAYOFFS))
@pytest.mark.parametrize(("reward", "agents"), [("mean", 1), ("sum", 2)])
def test_bounds_of_the_matrix_games_are_those_of_their_payoffs(task: str, reward: str, agents: int) -> None:
    known = known_bounds(f"matrix/{task}", {"env.episode_limit": 25, "env.reward": reward})
    payoffs = [value for row in PAYOFFS[task] for value in row]
    assert known is not None
    assert (known.low, known.high) == (25 * agents * min(payoffs), 25 * agents * max(payoffs))


@pytest.mark.parametrize(
    ("task", "settings", "bounds"),
    [
        ("lbf/8x8-2p-2f-coop-2s", {"env.reward": "sum"}, (0, 1)),
        ("pursuit/10x10-8h-8p", {"env.reward": "sum"}, (0, 40)),
        ("pursuit/10x10-5h-9p", {"env.reward": "mean"}, (0, 4)),
        ("lbf/15x15-4p-5f", {"env.reward": "mean"}, (0, 0.25)),
        ("grf/academy_3_vs_1_with_keeper", {"env.reward": "mean", "env.rewards": "scoring"}, (0, 1)),
        ("smax/3m", {"env.reward": "mean"}, (0, 2)),
        ("grf/academy_3_vs_1_with_keeper", {"env.reward": "mean", "env.rewards": "scoring,checkpoints"}, (0, 2)),
    ],
)
def test_known_bounds(task: str, settings: dict[str, Any], bounds: tuple[float, float]) -> None:
    known = known_bounds(task, settings)
    assert known is not None and (known.low, known.high) == bounds


@pytest.mark.parametrize(
    "task", ["mpe/simple_spread", "my_env/climbing", "grf/academy_corner", "matrix/other", "smax/3m"]
)
def test_nothing_is_known_of_other_tasks(task: str) -> None:
    assert known_bounds(task, {"env.reward": "sum", "env.episode_limit": 25, "env.rewards": "scoring"}) is None


def test_bounds_from_the_data_cover_all_methods_and_are_noted() -> None:
    runs = [
        record("mpe/simple_spread", "qmix", 0, (-500.0, -360.0)),
        record("mpe/simple_spread", "vdn", 0, (-490.0, -400.0)),
        record("lbf/8x8-2p-2f", "qmix", 0, (0.0, 0.5), reward="sum"),
    ]
    normalisation = normalise(runs)
    spread = normalisation.bounds_of(runs[1])
    assert spread is not None and (spread.low, spread.high) == (-500, -360)
    assert spread(np.array([-500.0, -430.0, -360.0, -290.0])).tolist() == [0, 0.5, 1, 1.5]
    assert any(note.startswith("mpe/simple_spread: 0 is a return of -500, 1 is -360") for note in normalisation.notes)
    assert any("of these 2 runs, over all methods; no bounds are known" in note for note in normalisation.notes)
    assert sample_units.scores(runs[::2], ["lbf/8x8-2p-2f", "mpe/simple_spread"], "final_return", normalisation) == [
        0.5,
        1.0,
    ]


def test_returns_with_another_meaning_have_their_own_bounds() -> None:
    runs = [record("mpe/x", "qmix", at, (0.0, 10.0 * (1 + at)), reward=("mean", "sum")[at]) for at in range(2)]
    normalisation = normalise(runs)
    assert [normalisation.bounds_of(run).high for run in runs] == [10, 20]


def test_a_task_without_a_scale_is_left_out_with_a_note() -> None:
    runs = [record("mpe/x", "qmix", 0, (3.0, 3.0))]
    normalisation = normalise(runs)
    assert normalisation.left_out == tuple(runs) and "left out" in normalisation.notes[0]
    assert normalisation.bounds_of(runs[0]) is None
