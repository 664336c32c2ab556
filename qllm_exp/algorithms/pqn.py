"""PQN, parallelised Q-networks (Gallici et al. 2024, arXiv 2407.04811): Q-learning without replay buffer and target network.

    y_t  = r_t + gamma (1 - terminated_t) [(1 - lambda) max_a Q_tot(s_{t+1}, a) + lambda y_{t+1}]   Q(lambda) (Peng, Williams 1994)
    loss = mean over the steps of episodes [(Q_tot(s_t, a_t) - y_t)^2],   no gradient through y_t

y_t bootstraps from the last state of an episode that was truncated. A rollout is one episode in every environment copy. An
update has `epochs` passes over the last rollout; in each, the episodes are divided at random into `minibatches` gradient steps.
Every gradient step computes y_t anew, with its own parameters. max_a is at the agents' argmaxes, whose Q_tot is highest if the
mixer satisfies IGM.

What keeps this stable in the place of a target network is layer normalisation before each ReLU of the agents' networks
[layer_norm=false: without]. As published, the optimiser is rectified Adam (Liu et al. 2020, arXiv 1908.03265): without a buffer
the first gradients come from few, correlated episodes, and its first steps are not scaled by their variance.

The publication combines PQN with VDN [mixer=vdn] in its experiments with several agents; every other mixer can be combined with
it just as well.

An update takes 5.2 (lbf) or 6.1 times (mpe) as long as an update of Q-learning with QMIX on the same number of episodes
(tests/bench/updates.py), with 3.1 times its floating-point operations: it has 16 gradient steps, on small minibatches. There is
one update per rollout, while Q-learning has one per 200 steps: with episodes of 50 steps, 8 on as many steps.

Deviations from the publication, and from the authors' code for several agents (`pqn_vdn_rnn` in JaxMARL and purejaxql):
1. A rollout has whole episodes, and the agents' memory starts at the first step of each. The authors' has a fixed number of
   steps, and the memory of the network that acted.
2. An episode that was truncated by a time limit bootstraps from its last state; in the authors' code it counts as terminated.
3. The agents' networks are those of `train`: one hidden layer before the GRU, where the authors have two, and initial weights of
   torch.
4. `train=fair` is the common setting of all methods, with rectified Adam: learning rate 0.0005, width 64, gradients clipped at
   10, standardised rewards. 32 episodes per rollout, and 4 epochs of 4 minibatches. Lambda is 0.85, the authors' value for
   SMAX, where the other methods have 0.6: a gradient step raises the Qs that the next one bootstraps from, and no target network
   delays this. On mpe with lambda 0.6 the mean Q_tot grew to 96 in 80,000 steps at a return below that of random actions; with
   0.85 it was 15 at 60,000, and the return above (-412 after 50,000, random actions -428; VDN, one seed).

Where `train=paper` differs from the settings of the authors' files for SMAX, and for mpe for MPE:
1. The authors normalise batches on SMAX, and the inputs too; their files for other environments normalise layers, as here.
2. The learning rate is constant; on SMAX the authors' falls to 0 linearly. Rewards are as they are; on SMAX the authors
   multiply them by 10.
3. An update follows 128 whole episodes (mpe: 256). The authors' follows 128 steps of 128 copies on SMAX, about as much, and 16
   steps of 256 copies on MPE, less than an episode each. On SMAX theirs also replays the 4 steps before (MEMORY_WINDOW).
4. Evaluations have 100 episodes every 50,000 steps, those of the authors 128 (MPE: 512) every 500,000 (MPE: 100,000).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.value_based import QValues, ValueBased, ValueBasedConfig
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer, greedy_actions
from qllm_exp.networks.agents import TeamNetwork
from qllm_exp.networks.packing import Packing


@dataclass
class Config(ValueBasedConfig):
    """Options of `algorithm=pqn`; conf/algorithm/pqn.yaml explains them."""

    name: str = "pqn"
    td_lambda: float = schema.number(0.85, 0, 1)
    num_envs: int = schema.number(32, 1, identity=False)  # env.num_envs takes this value and is part of the identity
    epochs: int = schema.number(4, 1)
    minibatches: int = schema.number(4, 1)
    layer_norm: bool = True


ACCEPTS: tuple[str, ...] | None = None  # every mixer


class Pqn(ValueBased):
    """Agents with normalised layers, mixer and one optimiser; nothing is copied or replayed.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any mixer; it is moved to the environment's device.
    """

    on_policy = True
    config: Config

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        super().__init__(config, train, env, mixer, config.layer_norm)
        self.generator = torch.Generator()  # of the minibatches; on the CPU, so that every device divides alike
        self.generator.manual_seed(int(torch.randint(2**62, ())))

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Learn from the last rollout, and return the means of the gradient steps' metrics."""
        rollout = experience.last_rollout()
        all_metrics = [self.learn(batch) for _ in range(self.config.epochs) for batch in self.minibatches(rollout)]
        return {name: torch.stack([metrics[name] for metrics in all_metrics]).mean() for name in all_metrics[0]}

    def minibatches(self, rollout: EpisodeBatch) -> list[EpisodeBatch]:
        """Divide the episodes of a rollout at random into minibatches of almost equal size, at most one per episode."""
        episodes = rollout.mask.shape[1]
        parts = torch.randperm(episodes, generator=self.generator).to(self.device, non_blocking=True)
        return [
            EpisodeBatch(*(values.index_select(1, part) for values in rollout))
            for part in parts.tensor_split(min(self.config.minibatches, episodes))
        ]

    def q_values(self, batch: EpisodeBatch, inputs: Tensor, observations: Packing) -> QValues:
        """Qs of the agents, which the targets bootstrap from too; see `ValueBased.q_values`."""
        qs = observations.unpack(self.agents.unroll(inputs, observations))
        return QValues(qs, qs.detach(), greedy_actions(qs, batch.available_actions))

    def bootstrap_networks(self) -> tuple[Mixer, TeamNetwork | None]:
        """The mixer and its central agents."""
        return self.mixer, self.central

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser, statistics and the generator; see `Algorithm.state_dict`."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.generator.set_state(saved["generator"])


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Pqn:
    """Build the algorithm of `algorithm=pqn`."""
    assert isinstance(run.algorithm, Config)
    return Pqn(run.algorithm, run.train, env, mixer)
