"""No mixing (independent Q-learning, Tan 1993): every agent's Q is trained towards the team reward by itself."""

from typing import Any

from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


class Independent(Mixer):
    """Hands the individual Qs on."""

    monotone = True
    learns = False
    per_agent = True

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        return agent_qs


def make(config: Any, env: TeamEnv, tfcaf: Any) -> Independent:
    return Independent()
