"""Value decomposition networks (Sunehag et al., arXiv 1706.05296): Q_tot = sum_i Q_i."""

from typing import Any

from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


class Vdn(Mixer):
    """The sum; the state plays no part."""

    monotone = True
    learns = False

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        return agent_qs.sum(-1)


def make(config: Any, env: TeamEnv, tfcaf: Any) -> Vdn:
    return Vdn()
