"""IPPO: every agent by itself learns by proximal policy optimisation from the team reward (de Witt et al. 2020, arXiv 2011.09533).

    advantage:  A_t = G_t - V(o_t), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(o_t) - G_t)^2]

An update is `epochs` gradient steps on all the episodes of a rollout, so that it takes three to four times as long as one of
Q-learning with QMIX on as many episodes (proximal.py).

V sees what the agent itself sees. With share_parameters=false nothing is shared between agents.

Where it deviates from the publication, the defaults are those of EPyMARL (Papoudakis et al. 2021):
1. 5-step returns with a target critic that follows softly, instead of generalised advantages [targets=td_lambda target_tau=1].
2. Values are not clipped, and advantages are not normalised [normalise_advantages=true].
3. The critic is feed-forward, with parameters of its own, even where the agents remember.
4. All episodes of a rollout are one batch, played to their end.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.ppo import PpoConfig, Proximal
from qllm_exp.config.schema import RunConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(PpoConfig):
    name: str = "ippo"


ACCEPTS = ("none",)


class Ippo(Proximal):
    """The critic sees what the agent sees."""

    def critic_size(self, env: TeamEnv) -> int:
        return self.inputs.size

    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        return self.inputs.along(batch.obs, batch.actions)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Ippo:
    assert isinstance(run.algorithm, Config)
    return Ippo(run.algorithm, run.train, env)
