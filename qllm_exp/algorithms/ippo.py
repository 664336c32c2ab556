"""IPPO: each agent learns independently by PPO from the team reward (de Witt et al. 2020, arXiv 2011.09533).

    advantage:  A_t = G_t - V(o_t), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(o_t) - G_t)^2]

V sees the agent's own inputs. With share_parameters=false the agents share nothing.

An update consists of `epochs` gradient steps on all episodes of a rollout. It takes 3.1 to 3.5 times as long as an update of
Q-learning with QMIX on the same number of episodes, and has 3.1 times its arithmetic (ppo.py).

Deviations from the publication, with defaults from EPyMARL (Papoudakis et al. 2021):
1. 5-step returns with a softly updated target critic, instead of generalised advantages [targets=td_lambda target_tau=1].
2. Values are not clipped, and advantages are not normalised [normalise_advantages=true].
3. The critic is feed-forward and has its own parameters, even if the agents are recurrent.
4. All episodes of a rollout form one batch and are played to their end.

Where `train=paper` differs from EPyMARL's code, whose settings it has:
1. EPyMARL computes the advantages anew in every epoch, with the critic of that epoch. Here they are computed once, as published.
2. EPyMARL's n-step returns within n steps of the end of the longest episode of a batch bootstrap past terminations. Here no
   return does.
3. Rewards are standardised by the moments of all rewards so far. EPyMARL counts padding as a reward of 0.
"""

from dataclasses import dataclass

from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.ppo import Ppo, PpoConfig
from qllm_exp.config.schema import RunConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(PpoConfig):
    """Options of `algorithm=ippo`; conf/algorithm/ippo.yaml explains them."""

    name: str = "ippo"


ACCEPTS = ("none",)


class Ippo(Ppo):
    """PPO whose critic sees the agent's own inputs."""

    def critic_size(self, env: TeamEnv) -> int:
        """Number of inputs of the agent."""
        return self.inputs.size

    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        """Inputs of the agents' networks, [T + 1, B, n, critic_size]."""
        return self.inputs.sequence_inputs(batch.obs, batch.actions)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Ippo:
    """Build the algorithm of `algorithm=ippo`."""
    assert isinstance(run.algorithm, Config)
    return Ippo(run.algorithm, run.train, env)
