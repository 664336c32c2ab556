"""What no run can have is found while runs are planned: options that an environment rejects, episodes that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import run_config

from qllm_exp.config import schema
from qllm_exp.config.load import config_class
from qllm_exp.envs import env_module
from qllm_exp.errors import UserError
from qllm_exp.sweep import prepare
from qllm_exp.utils.memory import Memory

IMAGES = '''
"""Two agents that see images."""
import gymnasium.spaces as spaces
import numpy as np


class Game:
    possible_agents = ["a", "b"]
    metadata = {"name": "images"}
    unwrapped = property(lambda self: self)

    def observation_space(self, agent):
        return spaces.Box(0, 255, (84, 84, 3), np.uint8)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def _views(self):
        return {name: np.zeros((84, 84, 3), np.uint8) for name in self.possible_agents}

    def reset(self, seed=None, options=None):
        return self._views(), {}

    def step(self, actions):
        flags = dict.fromkeys(self.possible_agents, False)
        return self._views(), dict.fromkeys(self.possible_agents, 1.0), flags, flags, {}

    def close(self):
        pass


def parallel_env():
    return Game()
'''


@pytest.fixture(autouse=True)
def nothing_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_SIZES", {})


def checked(
    env: str, mixer: str = "vdn", memory: Memory | None = None, algorithm: str = "q_learning", **options: Any
) -> Any:
    env_config = config_class("env", env)(**options)
    run = replace(run_config(mixer), env=env_config, algorithm=config_class("algorithm", algorithm)(), device="cpu")
    return prepare.check(run, memory=lambda: memory)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("pettingzoo", {"options": {"continuous_actions": True}}, "Only Discrete action spaces are supported"),
        ("pettingzoo", {"options": {"M": 3}}, "rejects env.options={'M': 3}"),
        ("mpe", {"options": {"n_agents": "three"}}, "VMAS rejects env.options"),
    ],
)
def test_options_that_an_environment_rejects_are_found_while_planning(
    env: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        checked(env, **options)


def test_each_environment_is_built_once_and_expensive_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module, built = env_module("matrix"), []
    make = module.make
    monkeypatch.setattr(module, "make", lambda config, *others: built.append(config) or make(config, *others))
    for task in ("climbing", "penalty-0", "climbing"):
        for mixer in ("vdn", "qmix"):
            checked("matrix", mixer, task=task)
    assert [config.task for config in built] == ["climbing", "penalty-0"]
    assert [config.num_envs for config in built] == [1, 1]
    monkeypatch.setattr(module.Config, "built_when_planned", False)
    checked("matrix", task="penalty-25")
    assert len(built) == 2 and not config_class("env", "grf").built_when_planned


@pytest.mark.parametrize("env", ["lbf", "matrix", "mpe", "pettingzoo", "pursuit", "smax"])
def test_jobs_on_gpus_are_planned_where_there_is_no_gpu(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, devices = env_module(env), []
    make = module.make
    monkeypatch.setattr(module, "make", lambda *arguments: devices.append(arguments[-1].type) or make(*arguments))
    run = replace(run_config("qmix"), env=config_class("env", env)())
    assert prepare.check(run, lambda device: "cuda").device == "cuda" and devices == ["cpu"]


def test_an_error_in_the_code_of_an_environment_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no\nsimulator")

    monkeypatch.setattr(env_module("matrix"), "make", fail)
    with pytest.raises(UserError, match=r"cannot be built: RuntimeError: no simulator \(.*test_prepare.py, line \d+\)"):
        checked("matrix")


def test_images_that_do_not_fit_into_memory_are_refused_with_sizes_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image_games").mkdir()
    (tmp_path / "image_games" / "__init__.py").touch()
    (tmp_path / "image_games" / "images_v0.py").write_text(IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        checked("pettingzoo", memory=Memory(16 * 10**9, "this machine"), task="image_games.images_v0")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("train.buffer_episodes=5000 does not fit into memory")
    assert "2 observations of 21,168 numbers and a state of 42,336" in message
    assert (
        "44.1 GB, while this machine has 16.0 GB available" in message
        and "lower train.buffer_episodes to 1,808 or less" in message
    )
    checked("pettingzoo", memory=Memory(10**11, "this machine"), task="image_games.images_v0")
    checked("pettingzoo", memory=None, task="image_games.images_v0")


def test_an_algorithm_that_stores_its_last_rollout_only_needs_no_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_SMALL", 0)
    memory = Memory(10**6, "a job")
    with pytest.raises(UserError, match=r"train\.buffer_episodes=5000 does not fit.* a job has 1\.0 MB"):
        checked("lbf", memory=memory)
    checked("lbf", "none", memory, "ippo")


def test_what_fits_is_what_is_stored() -> None:
    from qllm_exp.envs import make_env
    from qllm_exp.training.replay import ReplayBuffer, check_memory, episode_size

    env = make_env(config_class("env", "lbf")(), 3, 0)
    size, train = episode_size(env), schema.TrainConfig(buffer_episodes=7, batch_episodes=2)
    assert size.nbytes * 7 == ReplayBuffer(env, 7).episodes.nbytes()
    check_memory(size, 3, train, False, Memory(size.nbytes * 10, "here"))
    with pytest.raises(UserError, match=r"lower train\.buffer_episodes to 6 or less"):
        check_memory(size, 3, train, False, Memory(size.nbytes * 10 - 1, "here"))
    check_memory(size, 3, train, True, Memory(size.nbytes * 6, "here"))
    with pytest.raises(UserError, match=r"env\.num_envs=3 does not fit.*lower env\.num_envs to 2 or less"):
        check_memory(size, 3, train, True, Memory(size.nbytes * 5, "here"))


def test_seeds_of_searches_are_refused_for_other_runs() -> None:
    run = run_config("vdn", seed=1_000_003)
    with pytest.raises(
        UserError, match=r"seed=1000003 is reserved: .* from 1000000 to 1999999, .* Use another seed, e\.g\. seed=0"
    ):
        prepare.check(run)
    assert prepare.check(replace(run, sweep=schema.SweepConfig(search="a" * 64))).seed == 1_000_003
    assert [prepare.check(replace(run, seed=seed)).seed for seed in (999_999, 2_000_000)] == [999_999, 2_000_000]
