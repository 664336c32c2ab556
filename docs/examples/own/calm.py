"""An algorithm from outside the package: Q-learning with a penalty on large individual Qs.

    loss = loss of Q-learning + penalty * mean over steps, agents and actions of Q_i(o_t, a)^2

An algorithm is a module with `Config`, `ACCEPTS` and `make`. The contract of what `make` returns is
qllm_exp/algorithms/base.py.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.algorithms import q_learning
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer

ACCEPTS = ("vdn", "qmix", "none")  # None would accept every mixer


@dataclass
class Config(q_learning.Config):
    """Options of Q-learning and one more; conf/algorithm/calm.yaml has the defaults and documents them."""

    name: str = "calm"
    penalty: float = schema.number(0.001, 0)


class Calm(q_learning.QLearning):
    """Q-learning with the penalty as an auxiliary loss."""

    config: Config

    def auxiliary_loss(
        self, batch: EpisodeBatch, values: q_learning.QValues, reward: Tensor
    ) -> q_learning.AuxiliaryUpdate:
        """The reward [T, B] without a change, and the penalty."""
        squares = values.online[:-1].square().mean((-1, -2))  # [T, B]
        mean_square = (squares * batch.mask).sum() / batch.mask.sum()
        metrics = {"squared_q": mean_square.detach()}
        return q_learning.AuxiliaryUpdate(reward, self.config.penalty * mean_square, metrics)


def make(run: schema.RunConfig, env: TeamEnv, mixer: Mixer) -> Calm:
    """Build the algorithm from the configuration of a run."""
    assert isinstance(run.algorithm, Config)
    return Calm(run.algorithm, run.train, env, mixer)
