"""VDN, value decomposition networks (Sunehag et al., arXiv 1706.05296): the sum of the individual Qs.

    Q_tot = sum_i Q_i

Deviations from the publication:
1. The agents' networks are those of `train`: a GRU without a dueling head, where the publication has an LSTM with one. With
   `train.share_parameters=true` the agents share one network and are distinguished by their index, as in the publication's
   variants with role information.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=vdn`: none besides the name."""

    name: str = "vdn"


class Vdn(Mixer):
    """Sum of the individual Qs; the state is not used."""

    monotone = True
    learns = False

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """Q_tot [...] of individual Qs [..., n]."""
        return agent_qs.sum(-1)


def make(config: Config, env: TeamEnv) -> Vdn:
    """Build the mixer of `mixer=vdn`."""
    return Vdn()
