"""What algorithms share whose agents have a policy: a critic of their own, its targets, and how agents and critic learn.

`ActorCritic` is for those that learn on-policy. The agents' networks are those of `train`. Agents and critic have an optimiser
each, with one learning rate. The critic's targets are n-step or TD(lambda) returns (returns.py) with the values of a target
critic; after an episode that was truncated they bootstrap.
"""

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qllm_exp.algorithms.agent_inputs import AgentInputs
from qllm_exp.algorithms.base import Algorithm, EpisodeBatch, Experience
from qllm_exp.algorithms.flat_parameters import FlatParameters, TargetNetworkConfig, follow, optimiser
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.algorithms.targets import n_step, td_lambda
from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class ActorCriticConfig(TargetNetworkConfig):
    """What every algorithm has that learns a policy, and a critic for it."""

    targets: str = schema.one_of("n_step", "td_lambda")
    n_step: int = schema.number(5, 1)
    td_lambda: float = schema.number(0.95, 0, 1)
    evaluation: str = schema.one_of("sample", "greedy")


@dataclass
class OnPolicyConfig(ActorCriticConfig):
    """What those have that learn from the latest episodes."""

    num_envs: int = schema.number(10, 1, identity=False)  # through env.num_envs, which is a part of what defines a run
    entropy: float = schema.number(0.001, 0)


class AgentsAndCritic(Algorithm):
    """Agents, critic, target critic and two optimisers.

    Training draws from the policy, and so does evaluation, since a policy is trained for what it earns when it is drawn from; or
    evaluation takes its most probable action (`config.evaluation`).

    Args:
        config: the `algorithm` group. train: the `train` group. env: what it acts in (sizes and device).
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
        self.actor_optimiser = optimiser(train, self.actor_parameters)
        self.critic_optimiser = optimiser(train, self.critic_parameters)
        self.rewards = RunningMoments(env.device)
        self.updates = 0

    @abstractmethod
    def build_critic(self, env: TeamEnv) -> nn.Module:
        """The critic with its first parameters."""

    def feed_forward(self, n_inputs: int, n_outputs: int) -> TeamNetwork:
        """Linear and ReLU, twice, then Linear: one for all agents or one each, as the agents' own networks are."""
        return TeamNetwork(self.n_agents, n_inputs, n_outputs, replace(self.train, network="mlp"))

    # Acting

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor | None]:
        return self.agents.initial_hidden(num_envs, self.device), self.inputs.before(num_envs)

    @torch.no_grad()
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        hidden, last = memory
        logits, hidden = self.agents.step(self.inputs.at(obs, last), hidden)
        policy = self.policy(logits, available_actions, env_step)
        greedy = env_step is None and self.config.evaluation == "greedy"
        actions = policy.best if greedy else policy.sample(generator)
        return actions, (hidden, self.inputs.after(actions, obs))

    def policy(self, logits: Tensor, available_actions: Tensor, env_step: int | None) -> MaskedCategorical:
        """What the agents draw from, logits and available_actions [N, n, A]. env_step: as `act`'s."""
        return MaskedCategorical(logits, available_actions)

    def exploration(self, env_step: int) -> dict[str, float]:
        return {}  # the policy explores; its entropy is among the figures of an update

    # Learning

    def observe(self, rewards: Tensor, mask: Tensor) -> None:
        if self.train.standardise_rewards:
            self.rewards.update(rewards, mask)

    @abstractmethod
    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One update, from a batch."""

    def of_each_agent(self, values: Tensor) -> Tensor:
        """[..., n, D]: what all agents have in common, values [..., D], once for each."""
        return values.unsqueeze(-2).expand(*values.shape[:-1], self.n_agents, values.shape[-1])

    def targets(self, batch: EpisodeBatch, next_value: Tensor, one_step: bool = False) -> Tensor:
        """What the critic is to say of each step, from what follows it: next_value [T, B], or [T, B, n] with one for each agent.

        Args:
            one_step: bootstrap after one step, whatever the configuration says.
        """
        reward = self.rewards.standardise(batch.reward) if self.train.standardise_rewards else batch.reward
        terminated, mask = batch.terminated, batch.mask
        if next_value.dim() > mask.dim():
            reward, terminated, mask = (x.unsqueeze(-1).expand_as(next_value) for x in (reward, terminated, mask))
        if one_step or self.config.targets == "n_step":
            steps = 1 if one_step else self.config.n_step
            return n_step(reward, next_value, terminated, mask, self.train.gamma, steps)
        return td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

    def improve_agents(self, loss: Tensor) -> Tensor:
        """One gradient step of the agents. Returns the norm of the gradient."""
        return self._descend(loss, self.agents, self.actor_parameters, self.actor_optimiser)

    def improve_critic(self, loss: Tensor) -> Tensor:
        """One gradient step of the critic. Returns the norm of the gradient."""
        return self._descend(loss, self.critic, self.critic_parameters, self.critic_optimiser)

    def _descend(self, loss: Tensor, of: nn.Module, all_of: FlatParameters, by: torch.optim.Optimizer) -> Tensor:
        all_of.gradient.zero_()
        torch.autograd.backward(loss, inputs=list(of.parameters()))
        norm = all_of.clip_(self.train.grad_norm_clip)
        by.step()
        return norm

    def update_target(self) -> None:
        """Count an update, and let the targets follow."""
        self.updates += 1
        follow(self.config, self.updates, self.target, self.critic_parameters)

    # Keeping

    def state_dict(self) -> dict[str, Any]:
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
        self.actor_parameters.values.data.copy_(saved["actor"])
        self.critic_parameters.values.data.copy_(saved["critic"])
        self.target.values.data.copy_(saved["target"])
        self.actor_optimiser.load_state_dict(saved["actor_optimiser"])
        self.critic_optimiser.load_state_dict(saved["critic_optimiser"])
        self.rewards.load_state_dict(saved["rewards"])
        self.updates = saved["updates"]

    def policy_state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.agents.state_dict().items()}

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.agents.load_state_dict(saved)

    def parameter_counts(self) -> dict[str, int]:
        parts: dict[str, nn.Module] = {"agent": self.agents, "critic": self.critic}
        return {name: sum(p.numel() for p in one.parameters()) for name, one in parts.items()}


class ActorCritic(AgentsAndCritic):
    """One that learns from batches that were played with the parameters as they are.

    Args:
        as `AgentsAndCritic`'s.
    """

    on_policy = True
    config: OnPolicyConfig

    def update(self, experience: Experience) -> dict[str, Tensor]:
        return self.learn(experience.fresh())


class ActionCritic(AgentsAndCritic):
    """With a critic of what the agents do.

    At the end of an episode that was truncated, it judges the last state by a joint action drawn from the policy.

    Args:
        as `AgentsAndCritic`'s.
    """

    def __init__(self, config: ActorCriticConfig, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.generator = torch.Generator(env.device)  # of the joint actions that follow an episode
        self.generator.manual_seed(int(torch.randint(2**62, ())))

    def all_actions(self, batch: EpisodeBatch, policy: MaskedCategorical) -> Tensor:
        """[T + 1, B, n] what the agents did, and where an episode is over, what they would do by their policy [T + 1, B, n, A]."""
        drawn = policy.sample(self.generator)
        return torch.cat([torch.where(batch.mask.unsqueeze(-1), batch.actions, drawn[:-1]), drawn[-1:]])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.generator.set_state(saved["generator"])


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the steps that happened, and over agents where values [T, B] or [T, B, n] have them; mask [T, B] bool."""
    weight = mask.unsqueeze(-1) if values.dim() > mask.dim() else mask
    weight = weight.expand_as(values).to(values.dtype)
    return (values * weight).sum() / weight.sum()
