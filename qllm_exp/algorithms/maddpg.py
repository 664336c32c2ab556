"""MADDPG, multi-agent deep deterministic policy gradients (Lowe et al. 2017, arXiv 1706.02275), for discrete actions.

    critic:     minimise mean [(Q^a(s_t, u_t) - y_t)^2],  y_t = r_t + gamma (1 - terminated_t) Q^a-(s_{t+1}, u'_1 .. u'_n)
    targets:    u'_b = the most probable available action of agent b's target policy in s_{t+1}
    agents:     maximise mean [Q^a(s, u_1 .. u_n) - regularisation * |z^a|^2 / A], where u_a alone is differentiated
    u_a:        one-hot of argmax (log pi^a + g), with the gradient of softmax((log pi^a + g) / temperature), g Gumbel noise

Episodes are replayed. z^a are the logits of the available actions, the others count as 0. Sampling by Gumbel noise is sampling
from pi^a, which is how the agents act in training (Jang et al. 2017, arXiv 1611.01144; straight-through).

Where it deviates from the publication, it does as EPyMARL (Papoudakis et al. 2021, arXiv 2006.07869; its settings: train=paper):
1. In the loss of agent a, the other agents' actions are drawn from their policies as they are now, not taken from the replay.
2. All agents have the team reward, and share one critic, which sees who it judges, if they share their network.
3. The critic sees the state, not all observations.
Where it deviates from EPyMARL's code:
4. Every step that happened counts, and no other: there the last step of an episode, with its reward, is left out of the losses
   and the padding after it is in them. An episode that was truncated bootstraps; there it counts as terminated.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActorCriticConfig, AgentsAndCritic, mean
from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.flat_parameters import FlatParameters, follow
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class Config(ActorCriticConfig):
    name: str = "maddpg"
    n_step: int = schema.number(1, 1)
    temperature: float = schema.number(1.0, 0.01)
    regularisation: float = schema.number(0.001, 0)


ACCEPTS = ("none",)


class Maddpg(AgentsAndCritic):
    """Agents, a critic of state and joint action, and target copies of both.

    Args:
        as `AgentsAndCritic`'s.
    """

    config: Config
    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.target_agents = copy.deepcopy(self.agents)
        self.target_actor = FlatParameters([self.target_agents])
        self.target_actor.values.requires_grad_(False)
        self.generator = torch.Generator(env.device)  # of the actions that the agents' loss is about
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        self.own = torch.eye(env.n_agents, dtype=torch.bool, device=env.device).unsqueeze(-1)  # [n, n, 1]

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        size = env.state_dim + env.n_agents * self.config.agent_id + env.n_agents * env.n_actions
        return self.feed_forward(size, 1)

    def update(self, experience: Experience) -> dict[str, Tensor]:
        return self.learn(experience.sample(self.train.batch_episodes))

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One gradient step of the critic, then one of the agents."""
        inputs = self.inputs.along(batch.obs, batch.actions)
        state, available = batch.state[:-1], batch.available_actions[:-1]
        done = self.of_each_agent(self._one_hot(batch.actions, state))
        with torch.no_grad():
            target = self.targets(batch, self._next_value(batch, inputs))
        q = self.value(self.critic, state, done)
        error = mean((q - target).square(), batch.mask)
        critic_norm = self.improve_critic(error)
        logits = self.agents.unroll(inputs[:-1])
        policy = MaskedCategorical(logits, available)
        gain = mean(self.value(self.critic, state, self._drawn(policy)), batch.mask)
        squares = mean(logits.masked_fill(~available, 0.0).square().mean(-1), batch.mask)
        norm = self.improve_agents(self.config.regularisation * squares - gain)
        self.update_target()
        figures = {"policy_loss": -gain, "value_loss": error, "entropy": mean(policy.entropy, batch.mask)}
        figures |= {"q": mean(q, batch.mask), "grad_norm": norm, "critic_grad_norm": critic_norm}
        return {name: value.detach() for name, value in figures.items()}

    def value(self, critic: TeamNetwork, state: Tensor, joint: Tensor) -> Tensor:
        """Q^a [T, B, n] of the joint action that each agent is judged with.

        Args:
            state: [T, B, S]; joint: [T, B, n, n * A], one-hot.
        """
        return critic.unroll(torch.cat([self.inputs.at(self.of_each_agent(state), None), joint], -1)).squeeze(-1)

    def _next_value(self, batch: EpisodeBatch, inputs: Tensor) -> Tensor:
        """[T, B, n] what the target critic says of the target agents' best actions after each step."""
        best = MaskedCategorical(self.target_agents.unroll(inputs), batch.available_actions).best[1:]
        state = batch.state[1:]
        return self.value(self.target_critic, state, self.of_each_agent(self._one_hot(best, state)))

    def _drawn(self, policy: MaskedCategorical) -> Tensor:
        """[T, B, n, n * A] a joint action of the policy, for each agent with a gradient to its own action alone."""
        noise = gumbel(policy.log_probs, self.generator)
        action = straight_through(policy.log_probs, noise, self.config.temperature).unsqueeze(-3)
        return torch.where(self.own, action, action.detach()).flatten(-2)

    def _one_hot(self, actions: Tensor, like: Tensor) -> Tensor:
        """[..., n * A] from actions [..., n] int64, as numbers of the type of `like`."""
        return F.one_hot(actions, self.n_actions).flatten(-2).to(like.dtype)

    def update_target(self) -> None:
        super().update_target()
        follow(self.config, self.updates, self.target_actor, self.actor_parameters)

    def state_dict(self) -> dict[str, Any]:
        own = {"target_actor": self.target_actor.values.data, "generator": self.generator.get_state()}
        return super().state_dict() | own

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.target_actor.values.data.copy_(saved["target_actor"])
        self.generator.set_state(saved["generator"])


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise, -log of exponential noise, of the shape and type of `like`; finite."""
    return -torch.empty_like(like).exponential_(generator=generator).clamp_(min=torch.finfo(like.dtype).tiny).log_()


def straight_through(log_probs: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """One-hot [..., A] of argmax (log_probs + noise), with the gradient of softmax((log_probs + noise) / temperature).

    Args:
        log_probs, noise: [..., A]. temperature: above 0.
    """
    soft = F.softmax((log_probs + noise) / temperature, -1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard - soft.detach() + soft


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Maddpg:
    assert isinstance(run.algorithm, Config)
    return Maddpg(run.algorithm, run.train, env)
