"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) for a team: what IPPO and MAPPO share.

    advantage:  A_t = G_t - V(s_t), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(s_t) - G_t)^2]

`epochs` gradient steps are taken on all the episodes of a rollout together; G and A stay those of before the first of them.
With targets=td_lambda and target_tau=1, A is the generalised advantage estimate sum_k (gamma lambda)^k delta_{t+k} (Schulman
et al. 2016), as TD(lambda) returns less V are. An update costs `epochs` passes through the networks, forward and back, so
that with four it takes three to four times as long as one of Q-learning with QMIX on as many episodes (tests/bench/updates.py).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.algorithms.actor_critic import ActorCritic, OnPolicyConfig, mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class PpoConfig(OnPolicyConfig):
    """Proximal policy optimisation."""

    epochs: int = schema.number(4, 1)
    clip: float = schema.number(0.2, 0, 1)
    normalise_advantages: bool = False
    normalise_values: bool = False


class Proximal(ActorCritic):
    """Agents, and a critic V of what `critic_inputs` says.

    Args:
        as `ActorCritic`'s.
    """

    config: PpoConfig
    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: PpoConfig, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.values = RunningMoments(env.device)  # of the critic's targets

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        return self.feed_forward(self.critic_size(env), 1)

    @abstractmethod
    def critic_size(self, env: TeamEnv) -> int:
        """How many inputs the critic has for each agent."""

    @abstractmethod
    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        """What the critic sees of each agent [T + 1, B, n, critic_size]."""

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """`epochs` gradient steps of agents and critic. Returns figures averaged over them."""
        inputs, seen = self.inputs.along(batch.obs, batch.actions)[:-1], self.critic_inputs(batch)
        target, advantage = self._judge(batch, seen)
        happened = batch.mask.unsqueeze(-1).expand_as(batch.actions)
        before: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for _ in range(self.config.epochs):
            policy = MaskedCategorical(self.agents.unroll(inputs), batch.available_actions[:-1])
            log_prob = torch.where(happened, policy.log_prob(batch.actions), 0.0)
            before = log_prob.detach() if before is None else before
            gain = mean(clipped_gain(log_prob - before, advantage, self.config.clip), batch.mask)
            entropy = mean(policy.entropy, batch.mask)
            error = mean((self.critic.unroll(seen[:-1]).squeeze(-1) - target).square(), batch.mask)
            norm = self.improve_agents(-gain - self.config.entropy * entropy)
            critic_norm = self.improve_critic(error)
            outside = ((log_prob.detach() - before).exp() - 1).abs() > self.config.clip
            clipped = mean(outside.to(target.dtype), batch.mask)
            figures = {"policy_loss": -gain, "value_loss": error, "entropy": entropy, "clipped": clipped}
            figures |= {"grad_norm": norm, "critic_grad_norm": critic_norm}
            sums = {name: value.detach() + sums.get(name, 0.0) for name, value in figures.items()}
        self.update_target()
        return {name: value / self.config.epochs for name, value in sums.items()}

    @torch.no_grad()
    def _judge(self, batch: EpisodeBatch, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What the critic is to say of each step and agent, and the advantage of what was done; both [T, B, n]."""
        next_value, value = self.target_critic.unroll(seen[1:]).squeeze(-1), self.critic.unroll(seen[:-1]).squeeze(-1)
        if self.config.normalise_values:
            next_value, value = self.values.restore(next_value), self.values.restore(value)
        target = self.targets(batch, next_value)
        happened = batch.mask.unsqueeze(-1).expand_as(target)
        advantage = target - value
        if self.config.normalise_advantages:
            moments = RunningMoments(self.device)
            moments.update(advantage, happened)
            advantage = moments.standardise(advantage)
        if self.config.normalise_values:
            self.values.update(target, happened)
            target = self.values.standardise(target)
        return target, advantage

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"values": self.values.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.values.load_state_dict(saved["values"])


def clipped_gain(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(r A, clip(r, 1 - c, 1 + c) A) of each element, r = exp(log_ratio)."""
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
