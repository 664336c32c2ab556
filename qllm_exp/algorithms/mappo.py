"""MAPPO: proximal policy optimisation with a centralised critic V(s, a) of the state (Yu et al. 2022, arXiv 2103.01955).

    advantage:  A_t = G_t - V(s_t, a), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(s_t, a) - G_t)^2]

An update consists of `epochs` gradient steps on all episodes of a rollout. It takes 3.1 to 3.5 times as long as an update of
Q-learning with QMIX on the same number of episodes, and has 3.1 times its arithmetic (ppo.py).

Deviations from the publication, with defaults from EPyMARL (Papoudakis et al. 2021). The options in brackets select the
publication's choice, where there is one:
1. 5-step returns with a softly updated target critic [targets=td_lambda target_tau=1].
2. Advantages and values are not normalised [normalise_advantages=true, normalise_values=true]. Values are normalised by the
   moments of all targets so far; the publication forgets old targets slowly.
3. The critic's loss is a plain squared error, neither Huber loss nor clipped. The critic is feed-forward even if the agents are
   recurrent.
4. The critic sees the state and the index of the agent, not the agent's observation in addition.
5. Evaluation samples from the policy [evaluation=greedy].
6. All episodes of a rollout form one batch and are played to their end.
7. Networks have torch's default initialisation and read their inputs as they are, and Adam's epsilon is 1e-8. The authors'
   code initialises weights orthogonally, normalises the inputs by layer normalisation, and has an epsilon of 1e-5.

Where `train=paper` differs from EPyMARL's code, whose settings it has:
1. EPyMARL computes the advantages anew in every epoch, with the critic of that epoch. Here they are computed once, as published.
2. EPyMARL's n-step returns within n steps of the end of the longest episode of a batch bootstrap past terminations. Here no
   return does.
3. Rewards are standardised by the moments of all rewards so far. EPyMARL counts padding as a reward of 0.
4. The critic sees the state of the environment's layout; EPyMARL's state is the observations of all agents in a row.
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
    """Options of `algorithm=mappo`; conf/algorithm/mappo.yaml explains them."""

    name: str = "mappo"


ACCEPTS = ("none",)


class Mappo(Ppo):
    """PPO whose critic sees the state and the index of the agent."""

    def critic_size(self, env: TeamEnv) -> int:
        """Size of the state and of the one-hot index."""
        if self.config.agent_id:
            return env.state_dim + env.n_agents
        return env.state_dim

    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        """State and one-hot index of each agent, [T + 1, B, n, critic_size]."""
        return self.inputs.step_inputs(self.broadcast_to_agents(batch.state), None)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Mappo:
    """Build the algorithm of `algorithm=mappo`."""
    assert isinstance(run.algorithm, Config)
    return Mappo(run.algorithm, run.train, env)
