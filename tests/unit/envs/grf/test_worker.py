"""Threads of the football worker: how they share the matches, and that they build configurations of their own."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qllm_exp.envs.grf import worker
from qllm_exp.envs.grf.worker import Scenario, play


class FakeMatch(SimpleNamespace):
    """A match that records who plays it, and first waits for `released`."""

    def step(self, actions: list[int]) -> None:
        self.released.wait(10.0)
        self.steps.append((self.number, actions, threading.current_thread().name))
        self.after()


def test_no_thread_waits_while_a_match_is_left() -> None:
    steps: list[Any] = []
    released, slow = threading.Event(), threading.Event()
    released.set()
    common = {"steps": steps, "goals": (1, 0), "terminated": False, "truncated": True}
    matches: list[Any] = [
        # The first match ends when all others have been played, whoever plays them.
        FakeMatch(number=i, released=released if i else slow, after=lambda: len(steps) == 7 and slow.set(), **common)
        for i in range(8)
    ]
    arrays: Any = SimpleNamespace(
        actions=np.arange(16).reshape(8, 2),
        goals=np.zeros((8, 2), int),
        terminated=np.ones(8, bool),
        truncated=np.zeros(8, bool),
        playing=np.ones(8, bool),
    )
    turns = iter(range(8))
    threads = [threading.Thread(target=play, args=(matches, arrays, turns, False)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert len({name for _, _, name in steps[:-1]}) == 1
    assert all(actions == [2 * number, 2 * number + 1] for number, actions, _ in steps)
    assert arrays.goals.tolist() == [[1, 0]] * 8
    assert not arrays.terminated.any() and arrays.truncated.all() and not arrays.playing.any()


def test_configurations_that_are_built_at_the_same_time_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_scenario(builder: Any) -> None:
        builder.config().game_duration = 400
        for player in range(4):
            time.sleep(0.01)  # lets the other thread run
            builder.AddPlayer(player, 0.0, "e_PlayerRole_CM")

    def make_config() -> SimpleNamespace:
        return SimpleNamespace(
            left_team=[], right_team=[], end_episode_on_out_of_play=False, end_episode_on_possession_change=False
        )

    monkeypatch.setattr(worker, "_scenario_module", lambda name: SimpleNamespace(build_scenario=build_scenario))
    engine = SimpleNamespace(
        e_Team=SimpleNamespace(e_Left="left"),
        ScenarioConfig=SimpleNamespace(make=make_config),
        FormationEntry=lambda x, y, role, lazy, controllable: SimpleNamespace(x=x, role=role),
    )
    scenario = Scenario(engine, "academy_corner", True, None)
    configs: list[Any] = []
    threads = [threading.Thread(target=lambda seed=seed: configs.append(scenario.build(seed))) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(config.game_engine_random_seed for config in configs) == [0, 1, 2]
    for config in configs:
        assert config.game_duration == 400
        assert [player.x for player in config.left_team] == [0, 1, 2, 3]
