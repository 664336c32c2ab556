"""IQL is Q-learning without a mixer; that it is configured like it is tested with the other configurations."""

import torch
from episode_batches import ENV, batch

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.iql import Config as IqlConfig
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import schema
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
