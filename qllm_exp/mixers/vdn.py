"""VDN, value decomposition networks (Sunehag et al., arXiv 1706.05296): the sum of the agents' Qs.

    Q_tot = sum_i Q_i

Deviations from the publication:
1. Agents are those of `train`: a GRU without a dueling head, where the publication has an LSTM with one; with
   `train.share_parameters=true` they share one network and tell themselves apart by their index, as its variants with roles do.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    name: str = "vdn"


class Vdn(Mixer):
    """The sum; the state plays no part."""

    monotone = True
    learns = False

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        return agent_qs.sum(-1)


def make(config: Config, env: TeamEnv) -> Vdn:
    return Vdn()
