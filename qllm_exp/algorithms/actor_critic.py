"""Base classes of algorithms whose agents have a policy and a critic.

The agents' networks are those of `train`. Agents and critic have one optimiser each, with the same learning rate. The critic
learns n-step or TD(lambda) returns (targets.py) that bootstrap from a target critic, also at the end of a truncated episode.
`OnPolicyActorCritic` is the base class of algorithms that learn on-policy.
"""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qllm_exp.algorithms.agent_inputs import AgentInputs
from qllm_exp.algorithms.base import Algorithm, EpisodeBatch, Experience
from qllm_exp.algorithms.flat_parameters import FlatParameters, TargetNetworkConfig, make_optimiser, update_target
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.algorithms.targets import n_step, td_lambda
from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class ActorCriticConfig(TargetNetworkConfig):
    """Options shared by all algorithms that learn a policy and a critic."""

    targets: str = schema.one_of("n_step", "td_lambda")
    n_step: int = schema.number(5, 1)
    td_lambda: float = schema.number(0.95, 0, 1)
    evaluation: str = schema.one_of("sample", "greedy")


@dataclass
class OnPolicyConfig(ActorCriticConfig):
    """Options shared by on-policy actor-critics."""

    num_envs: int = schema.number(10, 1, identity=False)  # env.num_envs takes this value and is part of the identity
    entropy: float = schema.number(0.001, 0)


class ActorCritic(Algorithm):
    """Agents, critic, target critic and two optimisers.

    Training samples from the policy. So does evaluation, because a policy is trained for the return that it earns when it is
    sampled; with `evaluation=greedy` evaluation takes the most probable actions instead.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    def __init__(self, config: ActorCriticConfig, train: TrainConfig, env: TeamEnv) -> None:
        self.config, self.train = config, train
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.inputs = AgentInputs(config, env)
        self.agents = TeamNetwork(env.n_agents, self.inputs.size, env.n_actions, train).to(env.device)
        self.critic = self.build_critic(env).to(env.device)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_parameters, self.critic_parameters = FlatParameters([self.agents]), FlatParameters([self.critic])
        self.target = FlatParameters([self.target_critic])
        self.target.values.requires_grad_(False)
        self.actor_optimiser = make_optimiser(train, self.actor_parameters)
        self.critic_optimiser = make_optimiser(train, self.critic_parameters)
        self.rewards = RunningMoments(env.device)
        self.updates = 0

    @abstractmethod
    def build_critic(self, env: TeamEnv) -> nn.Module:
        """Build the critic with its initial parameters."""

    def feed_forward(self, n_inputs: int, n_outputs: int) -> TeamNetwork:
        """Build a feed-forward network with two hidden layers, shared or per agent like the agents' own networks.

        Args:
            n_inputs: Inputs of each agent.
            n_outputs: Outputs of each agent.
        """
        return TeamNetwork(self.n_agents, n_inputs, n_outputs, replace(self.train, network="mlp"))

    # Acting

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor | None]:
        """Initial hidden states [N, n, H] and encoded last actions [N, n, A] or None."""
        return self.agents.initial_hidden(num_envs, self.device), self.inputs.initial_last_action(num_envs)

    @torch.no_grad()
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Sample a joint action, or take the most probable one in greedy evaluation; see `Algorithm.act`."""
        hidden, last_action = memory
        logits, hidden = self.agents.step(self.inputs.step_inputs(obs, last_action), hidden)
        policy = self.policy(logits, available_actions, env_step)
        greedy = env_step is None and self.config.evaluation == "greedy"
        actions = policy.best if greedy else policy.sample(generator)
        return actions, (hidden, self.inputs.encode_last_action(actions, obs))

    def policy(self, logits: Tensor, available_actions: Tensor, env_step: int | None) -> MaskedCategorical:
        """The distribution that the agents act by.

        Args:
            logits: [N, n, A].
            available_actions: [N, n, A] bool.
            env_step: Environment steps so far; None for evaluation.
        """
        return MaskedCategorical(logits, available_actions)

    def exploration(self, env_step: int) -> dict[str, float]:
        """Nothing: the policy explores, and `update` logs its entropy."""
        return {}

    # Learning

    def observe(self, rewards: Tensor, mask: Tensor) -> None:
        """Update the moments of the rewards [T, N], if rewards are standardised."""
        if self.train.standardise_rewards:
            self.rewards.update(rewards, mask)

    @abstractmethod
    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Perform one update on a batch and return metrics to log."""

    def broadcast_to_agents(self, values: Tensor) -> Tensor:
        """Repeat values [..., D] that all agents share for each agent: [..., n, D]."""
        return values.unsqueeze(-2).expand(*values.shape[:-1], self.n_agents, values.shape[-1])

    def targets(self, batch: EpisodeBatch, next_value: Tensor, one_step: bool = False) -> Tensor:
        """Value targets of the critic.

        Args:
            batch: The episodes.
            next_value: Target critic's values of the next states: [T, B], or [T, B, n] with one per agent.
            one_step: Whether to bootstrap after one step, whatever the configuration says.

        Returns:
            Of the shape of `next_value`.
        """
        reward = self.rewards.standardise(batch.reward) if self.train.standardise_rewards else batch.reward
        terminated, mask = batch.terminated, batch.mask
        if next_value.dim() > mask.dim():
            reward, terminated, mask = (x.unsqueeze(-1).expand_as(next_value) for x in (reward, terminated, mask))
        if one_step or self.config.targets == "n_step":
            steps = 1 if one_step else self.config.n_step
            return n_step(reward, next_value, terminated, mask, self.train.gamma, steps)
        return td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

    def update_agents(self, loss: Tensor) -> Tensor:
        """Take one gradient step of the agents and return the norm of the gradient."""
        return self._gradient_step(loss, self.actor_parameters, self.actor_optimiser)

    def update_critic(self, loss: Tensor) -> Tensor:
        """Take one gradient step of the critic and return the norm of the gradient."""
        return self._gradient_step(loss, self.critic_parameters, self.critic_optimiser)

    def _gradient_step(self, loss: Tensor, parameters: FlatParameters, optimiser: torch.optim.Optimizer) -> Tensor:
        parameters.gradient.zero_()
        torch.autograd.backward(loss, inputs=parameters.parameters)
        return parameters.gradient_step(optimiser, self.train.grad_norm_clip)

    def update_targets(self) -> None:
        """Count an update, and update the target networks."""
        self.updates += 1
        update_target(self.config, self.updates, self.target, self.critic_parameters)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers and statistics; see `Algorithm.state_dict`."""
        return {
            "actor": self.actor_parameters.values.data,
            "critic": self.critic_parameters.values.data,
            "target": self.target.values.data,
            "actor_optimiser": self.actor_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "rewards": self.rewards.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.actor_parameters.values.data.copy_(saved["actor"])
        self.critic_parameters.values.data.copy_(saved["critic"])
        self.target.values.data.copy_(saved["target"])
        self.actor_optimiser.load_state_dict(saved["actor_optimiser"])
        self.critic_optimiser.load_state_dict(saved["critic_optimiser"])
        self.rewards.load_state_dict(saved["rewards"])
        self.updates = saved["updates"]

    def policy_state_dict(self) -> dict[str, Tensor]:
        """Copies of the agents' parameters."""
        return {name: value.clone() for name, value in self.agents.state_dict().items()}

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore the result of `policy_state_dict`."""
        self.agents.load_state_dict(saved)

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of the agents and of the critic."""
        parts: dict[str, nn.Module] = {"agent": self.agents, "critic": self.critic}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


class OnPolicyActorCritic(ActorCritic):
    """An actor-critic that learns from batches collected with its current parameters.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    on_policy = True
    config: OnPolicyConfig

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Learn from the last rollout and return metrics to log."""
        return self.learn(experience.last_rollout())


class ActionValueActorCritic(ActorCritic):
    """An actor-critic whose critic is an action-value function of the joint action.

    The last state of a truncated episode has no action. Its value is that of a joint action sampled from the policy.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    def __init__(self, config: ActorCriticConfig, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.generator = torch.Generator(env.device)  # samples the joint actions that follow the end of an episode
        self.generator.manual_seed(int(torch.randint(2**62, ())))

    def all_actions(self, batch: EpisodeBatch, policy: MaskedCategorical) -> Tensor:
        """Actions taken in the episodes, continued by sampled actions after their end.

        Args:
            batch: The episodes.
            policy: The current policy, [T + 1, B, n, A].

        Returns:
            [T + 1, B, n] int64.
        """
        sampled = policy.sample(self.generator)
        return torch.cat([torch.where(batch.mask.unsqueeze(-1), batch.actions, sampled[:-1]), sampled[-1:]])

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, statistics and the generator; see `Algorithm.state_dict`."""
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.generator.set_state(saved["generator"])


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the steps of episodes without padding, and over agents.

    Args:
        values: [T, B] or [T, B, n].
        mask: Whether the step is part of the episode, [T, B] bool.

    Returns:
        A scalar.
    """
    weight = mask.unsqueeze(-1) if values.dim() > mask.dim() else mask
    weight = weight.expand_as(values).to(values.dtype)
    return (values * weight).sum() / weight.sum()
