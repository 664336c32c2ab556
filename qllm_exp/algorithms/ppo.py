"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) for a team: the common base of IPPO and MAPPO.

    advantage:  A_t = G_t - V(s_t), G_t an n-step or TD(lambda) return with the target critic's V
    agents:     maximise mean [min(r A, clip(r, 1 - c, 1 + c) A) + entropy * H(pi)], r = pi(u | h) / pi_old(u | h)
    critic:     minimise mean [(V(s_t) - G_t)^2]

An update consists of `epochs` gradient steps on all episodes of a rollout together. G and A are computed once, before the first
step. With targets=td_lambda and target_tau=1, A is the generalised advantage estimate sum_k (gamma lambda)^k delta_{t+k}
(Schulman et al. 2016), because that is a TD(lambda) return minus V.

An update costs `epochs` forward and backward passes. With four epochs it takes 3.1 to 3.5 times as long as an update of
Q-learning with QMIX on the same number of episodes (tests/bench/updates.py). That is its arithmetic: it has 3.1 times the
floating-point operations (2,395 against 773 million on lbf).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qllm_exp.algorithms.actor_critic import OnPolicyActorCritic, OnPolicyConfig, masked_mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class PpoConfig(OnPolicyConfig):
    """Options shared by IPPO and MAPPO."""

    epochs: int = schema.number(4, 1)
    clip: float = schema.number(0.2, 0, 1)
    normalise_advantages: bool = False
    normalise_values: bool = False


class Ppo(OnPolicyActorCritic):
    """Agents, and a critic V of the inputs that `critic_inputs` defines.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    config: PpoConfig
    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: PpoConfig, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.values = RunningMoments(env.device)  # of the critic's targets

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        """Build the critic: one value per agent."""
        return self.feed_forward(self.critic_size(env), 1)

    @abstractmethod
    def critic_size(self, env: TeamEnv) -> int:
        """Number of inputs of the critic for each agent."""

    @abstractmethod
    def critic_inputs(self, batch: EpisodeBatch) -> Tensor:
        """Inputs of the critic for each agent, [T + 1, B, n, critic_size]."""

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take `epochs` gradient steps of agents and critic, and return metrics averaged over them."""
        steps = batch.packed_steps()
        inputs = steps.pack(self.inputs.sequence_inputs(batch.obs, batch.actions)[:-1])
        critic_inputs = self.critic_inputs(batch)
        target, advantage = (steps.pack(x) for x in self._targets_and_advantages(batch, critic_inputs))
        critic_inputs = steps.pack(critic_inputs[:-1])
        available, actions, mask = (
            steps.pack(batch.available_actions[:-1]),
            steps.pack(batch.actions),
            steps.pack(batch.mask),
        )
        agent_mask = mask.unsqueeze(-1)
        old_log_prob: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for _ in range(self.config.epochs):
            policy = MaskedCategorical(self.agents.unroll(inputs, steps), available)
            log_prob = torch.where(agent_mask, policy.log_prob(actions), 0.0)
            if old_log_prob is None:
                old_log_prob = log_prob.detach()
            log_ratio = log_prob - old_log_prob
            objective = masked_mean(clipped_objective(log_ratio, advantage, self.config.clip), mask)
            entropy = masked_mean(policy.entropy, mask)
            value = self.critic.unroll(critic_inputs).squeeze(-1)
            value_loss = masked_mean((value - target).square(), mask)
            norm = self.update_agents(-objective - self.config.entropy * entropy)
            critic_norm = self.update_critic(value_loss)
            is_clipped = (log_ratio.detach().exp() - 1).abs() > self.config.clip
            metrics = {
                "policy_loss": -objective,
                "value_loss": value_loss,
                "entropy": entropy,
                "clipped": masked_mean(is_clipped.to(target.dtype), mask),
                "grad_norm": norm,
                "critic_grad_norm": critic_norm,
            }
            sums = {name: metric.detach() + sums.get(name, 0.0) for name, metric in metrics.items()}
        self.update_targets()
        return {name: total / self.config.epochs for name, total in sums.items()}

    @torch.no_grad()
    def _targets_and_advantages(self, batch: EpisodeBatch, critic_inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Value targets and advantages.

        Args:
            batch: The episodes.
            critic_inputs: [T + 1, B, n, critic_size].

        Returns:
            Value targets and advantages, [T, B, n] each.
        """
        steps = batch.packed_steps()
        next_value = steps.unpack(self.target_critic.unroll(steps.pack(critic_inputs[1:])).squeeze(-1))
        value = steps.unpack(self.critic.unroll(steps.pack(critic_inputs[:-1])).squeeze(-1))
        if self.config.normalise_values:
            next_value, value = self.values.restore(next_value), self.values.restore(value)
        target = self.targets(batch, next_value)
        agent_mask = batch.mask.unsqueeze(-1).expand_as(target)
        advantage = target - value
        if self.config.normalise_advantages:
            moments = RunningMoments(self.device)
            moments.update(advantage, agent_mask)
            advantage = moments.standardise(advantage)
        if self.config.normalise_values:
            self.values.update(target, agent_mask)
            target = self.values.standardise(target)
        return target, advantage

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers and statistics; see `Algorithm.state_dict`."""
        return super().state_dict() | {"values": self.values.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.values.load_state_dict(saved["values"])


def clipped_objective(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Clipped objective min(r A, clip(r, 1 - c, 1 + c) A) of each element.

    Args:
        log_ratio: log r, of any shape.
        advantage: A, of the same shape.
        clip: c.
    """
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
