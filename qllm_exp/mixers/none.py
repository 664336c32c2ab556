"""No mixing: every agent's value is trained towards the team's reward by itself (Tan 1993).

    Q_tot_i = Q_i        the output keeps the agent axis, and so do targets and errors

With `q_learning` this is independent Q-learning, IQL; algorithms/iql.py says where it deviates from its publications.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    name: str = "none"


class Independent(Mixer):
    """Hands the individual Qs on."""

    monotone = True
    learns = False
    per_agent = True

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        return agent_qs


def make(config: Config, env: TeamEnv) -> Independent:
    return Independent()
