"""IQL is Q-learning without a mixer, and is configured like it."""

import dataclasses

import pytest
import torch
from episode_batches import ENV, batch
from hydra import compose, initialize_config_dir

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.iql import Config as IqlConfig
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import registry, schema
from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run, to_dict
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.none import Independent


def test_an_update_is_that_of_q_learning_bit_by_bit():
    values = []
    for algorithm in (IqlConfig(), QLearningConfig()):
        torch.manual_seed(0)
        run = schema.RunConfig(algorithm=algorithm, mixer=NoMixerConfig(), train=schema.TrainConfig(hidden=8))
        algo = make_algorithm(run, ENV, Independent())
        assert isinstance(algo, QLearning)
        before = algo.online.values.detach().clone()
        for seed in range(3):
            algo.learn(batch(seed=seed))
        assert not torch.equal(algo.online.values, before)
        values.append(torch.cat([algo.online.values, algo.target.values]).detach())
    assert torch.equal(*values)


@pytest.mark.parametrize("train", ["fair", "quick"])
@pytest.mark.parametrize("env", registry.choices("env"))
def test_its_settings_are_those_of_q_learning(env, train):
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        first, second = (
            load_run(compose("config", [f"env={env}", f"train={train}", *overrides]))
            for overrides in (["algorithm=iql"], ["algorithm=q_learning", "mixer=none"])
        )
    assert to_dict(first) == to_dict(dataclasses.replace(second, algorithm=first.algorithm))
    assert dataclasses.asdict(first.algorithm) == dataclasses.asdict(second.algorithm) | {"name": "iql"}
