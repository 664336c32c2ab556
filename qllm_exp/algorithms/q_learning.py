"""Deep recurrent Q-learning (Hausknecht and Stone 2015, arXiv 1507.06527) with a mixer, in which IQL, VDN, QMIX and QLLM differ.

    y_t  = r_t + gamma (1 - terminated_t) Q_tot^-(s_{t+1}, argmax_a Q(s_{t+1}, a))      or its n-step or TD(lambda) form
    loss = mean over the steps that happened [(Q_tot(s_t, a_t) - y_t)^2]

The argmax is by the network in training (double Q, van Hasselt et al. 2016, arXiv 1509.06461) or by the target network
[double_q=false]. A mixer may add to the loss (mixers/base.py). Agents act by epsilon-greedy choice among the available actions.

Deviations from the publications:
1. Whole episodes are replayed, each agent's memory from the first step on; the publication replays from random points, too.
2. An episode that a time limit cut bootstraps from its last state; in QLLM's public code it counts as ended.
3. `train=fair` is one setting for all mixers: TD(0.6) targets, a target network that follows softly, standardised rewards.
   `train=paper` has the settings of public code: QLLM's with tfcaf and qmix, EPyMARL's for IQL with none, and PyMARL's with the
   others (its authors' VDN and QTRAN; Qatten's, QPLEX's and Weighted QMIX's authors keep them).
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.algorithms.agent_inputs import AgentInputs
from qllm_exp.algorithms.base import Algorithm, EpisodeBatch, Experience, linear
from qllm_exp.algorithms.flat_parameters import FlatParameters, TargetNetworkConfig, follow, optimiser
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.algorithms.targets import n_step, td_lambda
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer, greedy, mixing_loss
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class Config(TargetNetworkConfig):
    name: str = "q_learning"
    double_q: bool = True
    targets: str = schema.one_of("td_lambda", "n_step")
    n_step: int = schema.number(1, 1)
    td_lambda: float = schema.number(0.6, 0, 1)
    epsilon_start: float = schema.number(1.0, 0, 1)
    epsilon_end: float = schema.number(0.05, 0, 1)
    epsilon_steps: int = schema.number(200_000, 1)
    epsilon_evaluation: float = schema.number(0.0, 0, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer
_MIXER = "mixer."  # how the names of the mixer's parameters begin, among those of a policy


class QValues(NamedTuple):
    """The agents' Qs along the episodes of a batch, what follows the last step included."""

    online: Tensor  # [T + 1, B, n, A] of the agents in training, differentiable
    target: Tensor  # [T + 1, B, n, A] of their target copies
    best: Tensor  # [T + 1, B, n] int64, the available actions that targets take for the best


class AuxiliaryUpdate(NamedTuple):
    """What an algorithm that is built on this one adds to an update."""

    reward: Tensor  # [T, B], what Q_tot learns from
    loss: Tensor | None  # a scalar, beside the squared error of Q_tot
    figures: dict[str, Tensor]  # to log


class QLearning(Algorithm):
    """Agents, mixer, their target copies and one optimiser.

    A mixer with an `unrestricted` one has a second set of agents, `central`, whose Qs that one mixes; nobody acts by them.

    Args:
        config: the `algorithm` group. train: the `train` group.
        env: what it acts in (sizes and device). mixer: any mixer; it is moved to the environment's device.
    """

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        self.config, self.train = config, train
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.inputs = AgentInputs(config, env)
        self.agents = TeamNetwork(env.n_agents, self.inputs.size, env.n_actions, train).to(env.device)
        self.mixer: Mixer = mixer.to(env.device)
        self.central: TeamNetwork | None = None
        if mixer.unrestricted is not None:
            self.central = TeamNetwork(env.n_agents, self.inputs.size, env.n_actions, train).to(env.device)
        parts = (self.agents, self.mixer, self.central)
        self.target_agents, self.target_mixer, self.target_central = copy.deepcopy(parts)
        self.online = FlatParameters(one for one in parts if one is not None)
        targets = (self.target_agents, self.target_mixer, self.target_central)
        self.target = FlatParameters(one for one in targets if one is not None)
        self.target.values.requires_grad_(False)
        self.optimiser = optimiser(train, self.online)
        self.rewards = RunningMoments(env.device)
        self.updates = 0

    # Acting

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor | None]:
        return self.agents.initial_hidden(num_envs, self.device), self.inputs.before(num_envs)

    @torch.no_grad()
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        hidden, last = memory
        q, hidden = self.agents.step(self.inputs.at(obs, last), hidden)
        actions = greedy(q, available_actions)
        epsilon = self.config.epsilon_evaluation if env_step is None else self._epsilon(env_step)
        if epsilon > 0:
            draw = torch.rand(*actions.shape, self.n_actions + 1, generator=generator, device=self.device)
            anything = torch.where(available_actions, draw[..., 1:], -1.0).argmax(-1)  # uniform over what is available
            actions = torch.where(draw[..., 0] < epsilon, anything, actions)
        return actions, (hidden, self.inputs.after(actions, obs))

    def _epsilon(self, env_step: int) -> float:
        c = self.config
        return linear(c.epsilon_start, c.epsilon_end, c.epsilon_steps, env_step)

    def exploration(self, env_step: int) -> dict[str, float]:
        return {"epsilon": self._epsilon(env_step)}

    @torch.no_grad()
    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor:
        all_qs = self.agents.unroll(self.inputs.along(obs, actions))
        return all_qs[:-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    # Learning

    def observe(self, rewards: Tensor, mask: Tensor) -> None:
        if self.train.standardise_rewards:
            self.rewards.update(rewards, mask)

    def update(self, experience: Experience) -> dict[str, Tensor]:
        return self.learn(experience.sample(self.train.batch_episodes))

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One gradient update on a batch."""
        inputs = self.inputs.along(batch.obs, batch.actions)
        values = self._values(batch, inputs)
        now = JointAction(values.online[:-1], batch.available_actions[:-1], batch.actions)
        state = batch.state[:-1]
        q_tot = self.mixer.value(now, state)
        reward = self.rewards.standardise(batch.reward) if self.train.standardise_rewards else batch.reward
        further = self.further(batch, values, reward)
        target, weight = self._target(batch, inputs, values, further.reward, q_tot)
        central = None
        if self.central is not None:
            central = JointAction(self.central.unroll(inputs)[:-1], now.available, batch.actions)
        loss = mixing_loss(self.mixer, now, central, state, q_tot, target)
        count = weight.sum()
        total = (loss * weight).sum() / count
        if further.loss is not None:
            total = total + further.loss
        self.online.gradient.zero_()
        torch.autograd.backward(total)
        norm = self.online.clip_(self.train.grad_norm_clip)
        self.optimiser.step()
        self.updates += 1
        follow(self.config, self.updates, self.target, self.online)
        with torch.no_grad():
            error = (q_tot - target).square()
            td_error, mean_q = (error * weight).sum() / count, (q_tot * weight).sum() / count
        return {"loss": td_error, "grad_norm": norm, "q_tot": mean_q} | further.figures

    def further(self, batch: EpisodeBatch, values: QValues, reward: Tensor) -> AuxiliaryUpdate:
        """What to learn from instead of `reward` [T, B], and what to improve besides; for algorithms that are built on this one."""
        return AuxiliaryUpdate(reward, None, {})

    def _values(self, batch: EpisodeBatch, inputs: Tensor) -> QValues:
        online = self.agents.unroll(inputs)
        with torch.no_grad():
            target = self.target_agents.unroll(inputs)
            best = greedy(online if self.config.double_q else target, batch.available_actions)
        return QValues(online, target, best)

    @torch.no_grad()
    def _target(
        self, batch: EpisodeBatch, inputs: Tensor, values: QValues, reward: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the values, shaped like `like`, are to be, and the weight of each: 1 where the step happened, else 0."""
        target_qs, mixer = values.target[1:], self.target_mixer
        if self.target_central is not None and mixer.unrestricted is not None:
            target_qs, mixer = self.target_central.unroll(inputs)[1:], mixer.unrestricted
        next_value = mixer.value(JointAction(target_qs, batch.available_actions[1:], values.best[1:]), batch.state[1:])
        return self.returns(batch, reward, next_value), of_each(batch.mask, like).to(like.dtype)

    def returns(self, batch: EpisodeBatch, reward: Tensor, next_value: Tensor) -> Tensor:
        """The configured n-step or TD(lambda) returns, shaped like `next_value` [T, B] or [T, B, n]; reward: either."""
        reward, terminated, mask = (of_each(x, next_value) for x in (reward, batch.terminated, batch.mask))
        if self.config.targets == "n_step":
            return n_step(reward, next_value, terminated, mask, self.train.gamma, self.config.n_step)
        return td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        return {
            "online": self.online.values.data,
            "target": self.target.values.data,
            "optimiser": self.optimiser.state_dict(),
            "rewards": self.rewards.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.online.values.data.copy_(saved["online"])
        self.target.values.data.copy_(saved["target"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.rewards.load_state_dict(saved["rewards"])
        self.updates = saved["updates"]

    def policy_state_dict(self) -> dict[str, Tensor]:
        mixer = {f"{_MIXER}{name}": value.detach().clone() for name, value in self.mixer.named_parameters()}
        return {name: value.clone() for name, value in self.agents.state_dict().items()} | mixer

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.agents.load_state_dict({name: value for name, value in saved.items() if not name.startswith(_MIXER)})
        with torch.no_grad():
            for name, value in self.mixer.named_parameters():
                value.copy_(saved[f"{_MIXER}{name}"])

    def parameter_counts(self) -> dict[str, int]:
        parts = {"agent": self.agents, "mixer": self.mixer, "central": self.central}
        return {name: sum(p.numel() for p in one.parameters()) for name, one in parts.items() if one is not None}


def of_each(values: Tensor, like: Tensor) -> Tensor:
    """What a team has in common [T, B], once for each agent where `like` is [T, B, n]; else as it is."""
    return values.unsqueeze(-1).expand_as(like) if like.dim() > values.dim() else values


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> QLearning:
    assert isinstance(run.algorithm, Config)
    return QLearning(run.algorithm, run.train, env, mixer)
