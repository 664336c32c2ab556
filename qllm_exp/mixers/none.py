"""No mixing: each agent's value is trained towards the team's reward independently (Tan 1993).

    Q_tot_i = Q_i        the output, the targets and the errors keep the agent axis

With `q_learning` this is independent Q-learning (IQL); algorithms/iql.py lists the deviations from its publications.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.config import schema
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(schema.MixerConfig):
    """Options of `mixer=none`: none besides the name."""

    name: str = "none"


class Independent(Mixer):
    """Returns the individual Qs unchanged."""

    monotone = True
    learns = False
    per_agent = True

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        """The individual Qs [..., n]."""
        return agent_qs


def make(config: Config, env: TeamEnv) -> Independent:
    """Build the mixer of `mixer=none`."""
    return Independent()
