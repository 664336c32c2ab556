"""MAPPO: proximal policy optimisation with a centralised critic V(s, a) of the state (Yu et al. 2022, arXiv 2103.01955).

    advantage:  A_t = G_t - V(s_t, a), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(s_t, a) - G_t)^2]

An update is `epochs` gradient steps on all the episodes of a rollout, so that it takes three to four times as long as one of
Q-learning with QMIX on as many episodes (proximal.py).

Where it deviates from the publication, the defaults are those of EPyMARL (Papoudakis et al.
2021); what the publication does instead is in brackets, where an option gives it:
1. 5-step returns with a target critic that follows softly [targets=td_lambda target_tau=1].
2. Advantages and values are not normalised [normalise_advantages=true, normalise_values=true]. Values are normalised by the
   moments of all targets so far, where the publication forgets old ones slowly.
3. The critic's loss is a plain squared error: neither Huber's, nor clipped. It is feed-forward even where the agents remember.
4. The critic sees the state and who it judges, not the agent's own observation beside it.
5. Evaluation draws from the policy [evaluation=greedy].
6. All episodes of a rollout are one batch, played to their end.
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
    name: str = "mappo"


ACCEPTS = ("none",)


class Mappo(Proximal):
    """The critic sees the state, and whose value it is to say."""

    def critic_size(self, env: TeamEnv) -> int:
        return env.state_dim + env.n_agents * self.config.agent_id

    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        return self.inputs.at(self.of_each_agent(batch.state), None)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Mappo:
    assert isinstance(run.algorithm, Config)
    return Mappo(run.algorithm, run.train, env)
