"""Deep recurrent Q-learning (Hausknecht and Stone 2015, arXiv 1507.06527) with a mixer.

IQL, VDN, QMIX and QLLM are this algorithm with different mixers.

    y_t  = r_t + gamma (1 - terminated_t) Q_tot^-(s_{t+1}, argmax_a Q(s_{t+1}, a))      or its n-step or TD(lambda) form
    loss = mean over the steps of episodes [(Q_tot(s_t, a_t) - y_t)^2]

The argmax is by the online network (double Q-learning, van Hasselt et al. 2016, arXiv 1509.06461), or by the target network
[double_q=false]. A mixer may add to the loss (mixers/base.py). Agents act epsilon-greedily among the available actions.

Deviations from the publications:
1. Whole episodes are replayed, and each agent's memory starts at the first step. The publication also replays from random steps.
2. An episode that was truncated by a time limit bootstraps from its last state; in QLLM's and EPyMARL's public code it counts
   as terminated.
3. `train=fair` is one setting for all mixers: TD(0.6) targets, soft target updates, standardised rewards. `train=paper` has the
   settings of public code: QLLM's for tfcaf and qmix, EPyMARL's for none (IQL), and PyMARL's for all others (its authors' VDN
   and QTRAN; the authors of Qatten, QPLEX and Weighted QMIX keep them).

Where `train=paper` differs from the public codes whose settings it has:
1. The moments by which rewards are standardised are those of all rewards so far. EPyMARL and QLLM update them from each replayed
   batch, where a reward counts once per replay and padding counts as a reward of 0.
2. Targets on the tasks other than football have one step: QLLM's files set td_lambda = 0.6, which their learner does not read.
3. On football, QLLM's loss is half the squared error, so its gradient clip of 10 is `train.grad_norm_clip=20` here. Its mixers
   see the observations of all agents in a row, n x 115 columns; here they see the state of the environment's layout.
4. The files for StarCraft (PyMARL's) have 2.05 million steps, and 32 evaluation episodes every 10,000 steps; here runs have 2
   million steps, and 100 episodes every 50,000.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.flat_parameters import FlatParameters, TargetNetworkConfig, update_target
from qllm_exp.algorithms.targets import n_step
from qllm_exp.algorithms.value_based import AuxiliaryUpdate, QValues, ValueBased, ValueBasedConfig, expand_agents
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer, greedy_actions
from qllm_exp.networks.agents import TeamNetwork
from qllm_exp.networks.packing import Packing

__all__ = ["ACCEPTS", "AuxiliaryUpdate", "Config", "QLearning", "QValues", "make"]


@dataclass
class Config(ValueBasedConfig, TargetNetworkConfig):
    """Options of `algorithm=q_learning`; conf/algorithm/q_learning.yaml explains them."""

    name: str = "q_learning"
    double_q: bool = True
    targets: str = schema.one_of("td_lambda", "n_step")
    n_step: int = schema.number(1, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer


class QLearning(ValueBased):
    """Agents, mixer, their target copies and one optimiser.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any mixer; it is moved to the environment's device.
    """

    config: Config

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        super().__init__(config, train, env, mixer)
        online_modules = (self.agents, self.mixer, self.central)
        self.target_agents, self.target_mixer, self.target_central = copy.deepcopy(online_modules)
        target_modules = (self.target_agents, self.target_mixer, self.target_central)
        self.target = FlatParameters(module for module in target_modules if module is not None)
        self.target.values.requires_grad_(False)
        self.updates = 0

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Learn from replayed episodes and return metrics to log."""
        return self.learn(experience.sample(self.train.batch_episodes))

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step on a batch, update the target networks and return metrics to log."""
        metrics = super().learn(batch)
        self.updates += 1
        update_target(self.config, self.updates, self.target, self.online)
        return metrics

    def q_values(self, batch: EpisodeBatch, inputs: Tensor, observations: Packing) -> QValues:
        """Qs of online and target agents; see `ValueBased.q_values`."""
        online = observations.unpack(self.agents.unroll(inputs, observations))
        with torch.no_grad():
            target = observations.unpack(self.target_agents.unroll(inputs, observations))
            best = greedy_actions(online if self.config.double_q else target, batch.available_actions)
        return QValues(online, target, best)

    def bootstrap_networks(self) -> tuple[Mixer, TeamNetwork | None]:
        """The target mixer and its central agents."""
        return self.target_mixer, self.target_central

    def returns(self, batch: EpisodeBatch, reward: Tensor, next_value: Tensor) -> Tensor:
        """n-step or TD(lambda) returns, as configured; see `ValueBased.returns`."""
        if self.config.targets == "td_lambda":
            return super().returns(batch, reward, next_value)
        reward, terminated, mask = (expand_agents(x, next_value) for x in (reward, batch.terminated, batch.mask))
        return n_step(reward, next_value, terminated, mask, self.train.gamma, self.config.n_step)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and statistics; see `Algorithm.state_dict`."""
        return super().state_dict() | {"target": self.target.values.data, "updates": self.updates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.target.values.data.copy_(saved["target"])
        self.updates = saved["updates"]


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> QLearning:
    """Build the algorithm of `algorithm=q_learning`."""
    assert isinstance(run.algorithm, Config)
    return QLearning(run.algorithm, run.train, env, mixer)
