"""MADDPG, multi-agent deep deterministic policy gradients (Lowe et al. 2017, arXiv 1706.02275), for discrete actions.

    critic:     minimise mean [(Q^a(s_t, u_t) - y_t)^2],  y_t = r_t + gamma (1 - terminated_t) Q^a-(s_{t+1}, u'_1 .. u'_n)
    targets:    u'_b = the most probable available action of agent b's target policy in s_{t+1}
    agents:     maximise mean [Q^a(s, u_1 .. u_n) - regularisation * |z^a|^2 / A], differentiated through u_a alone
    u_a:        one-hot of argmax (log pi^a + g), with the gradient of softmax((log pi^a + g) / temperature), g Gumbel noise

Episodes are replayed. z^a are the logits of agent a; those of unavailable actions count as 0. Adding Gumbel noise and taking the
argmax samples from pi^a, which is also how the agents act in training (straight-through; Jang et al. 2017, arXiv 1611.01144).

Deviations from the publication. The first three are those of EPyMARL (Papoudakis et al. 2021, arXiv 2006.07869), whose settings
train=paper has:
1. In the loss of agent a, the other agents' actions are sampled from their current policies, not taken from the replay.
2. All agents receive the team reward. They share one critic, which sees the agent's index, if they share their network.
3. The critic sees the state, not all observations.
4. Unlike EPyMARL's, the losses cover exactly the steps of each episode. EPyMARL leaves out the last step of an episode, with its
   reward, and includes the padding after it. A truncated episode bootstraps; in EPyMARL it counts as terminated.
5. The memory of the target agents starts at the first step of an episode, like that of the agents. EPyMARL's starts at the
   second, so that it lacks the first observation.
6. Rewards are standardised by the moments of all rewards so far. EPyMARL updates the moments from each replayed batch, where a
   reward counts once per replay and padding counts as a reward of 0.
7. The state is that of the environment's layout; EPyMARL's is the observations of all agents in a row.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActorCritic, ActorCriticConfig, masked_mean
from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.flat_parameters import FlatParameters, update_target
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class Config(ActorCriticConfig):
    """Options of `algorithm=maddpg`; conf/algorithm/maddpg.yaml explains them."""

    name: str = "maddpg"
    n_step: int = schema.number(1, 1)
    temperature: float = schema.number(1.0, 0.01)
    regularisation: float = schema.number(0.001, 0)


ACCEPTS = ("none",)


class Maddpg(ActorCritic):
    """Agents, a critic of state and joint action, and target copies of both.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    config: Config
    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.target_agents = copy.deepcopy(self.agents)
        self.target_actor = FlatParameters([self.target_agents])
        self.target_actor.values.requires_grad_(False)
        self.generator = torch.Generator(env.device)  # samples the actions in the agents' loss
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        self.own = torch.eye(env.n_agents, dtype=torch.bool, device=env.device).unsqueeze(-1)  # [n, n, 1]

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        """Build the critic: one value per agent."""
        size = env.state_dim + env.n_agents * env.n_actions
        if self.config.agent_id:
            size += env.n_agents
        return self.feed_forward(size, 1)

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Learn from replayed episodes and return metrics to log."""
        return self.learn(experience.sample(self.train.batch_episodes))

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step of the critic, then one of the agents, and return metrics to log."""
        steps = batch.packed_steps()
        inputs = self.inputs.sequence_inputs(batch.obs, batch.actions)
        state, available, mask = steps.pack(batch.state[:-1]), batch.available_actions[:-1], steps.pack(batch.mask)
        joint = self.broadcast_to_agents(self._one_hot(steps.pack(batch.actions), state))
        with torch.no_grad():
            target = steps.pack(self.targets(batch, self._next_value(batch, inputs)))
        q = self.critic_values(self.critic, state, joint)
        value_loss = masked_mean((q - target).square(), mask)
        critic_norm = self.update_critic(value_loss)
        logits = steps.unpack(self.agents.unroll(steps.pack(inputs[:-1]), steps))
        policy = MaskedCategorical(logits, available)
        sampled = self._sample_joint(policy)
        objective = masked_mean(self.critic_values(self.critic, state, steps.pack(sampled)), mask)
        squared_logits = masked_mean(logits.masked_fill(~available, 0.0).square().mean(-1), batch.mask)
        norm = self.update_agents(self.config.regularisation * squared_logits - objective)
        self.update_targets()
        metrics = {
            "policy_loss": -objective,
            "value_loss": value_loss,
            "entropy": masked_mean(policy.entropy, batch.mask),
            "q": masked_mean(q, mask),
            "grad_norm": norm,
            "critic_grad_norm": critic_norm,
        }
        return {name: value.detach() for name, value in metrics.items()}

    def critic_values(self, critic: TeamNetwork, state: Tensor, joint: Tensor) -> Tensor:
        """Q^a of each agent.

        Args:
            critic: The critic or the target critic.
            state: [T, B, state_dim].
            joint: One-hot joint action in each agent's value, [T, B, n, n * A].

        Returns:
            [T, B, n].
        """
        state_inputs = self.inputs.step_inputs(self.broadcast_to_agents(state), None)
        return critic.unroll(torch.cat([state_inputs, joint], -1)).squeeze(-1)

    def _next_value(self, batch: EpisodeBatch, inputs: Tensor) -> Tensor:
        """Target critic's values [T, B, n] of the target agents' most probable actions after each step.

        Args:
            batch: The episodes.
            inputs: Inputs of the agents' networks, [T + 1, B, n, agent inputs].
        """
        steps, observations = batch.packed_steps(), batch.packed_observations()
        logits = observations.unpack(self.target_agents.unroll(observations.pack(inputs), observations))
        best_actions = MaskedCategorical(logits, batch.available_actions).best[1:]
        state = steps.pack(batch.state[1:])
        joint = self.broadcast_to_agents(self._one_hot(steps.pack(best_actions), state))
        return steps.unpack(self.critic_values(self.target_critic, state, joint))

    def _sample_joint(self, policy: MaskedCategorical) -> Tensor:
        """Sample a joint action, copied for each agent with a gradient through that agent's own action alone.

        Args:
            policy: [T, B, n, A].

        Returns:
            One-hot joint actions, [T, B, n, n * A].
        """
        noise = gumbel(policy.log_probs, self.generator)
        actions = straight_through(policy.log_probs, noise, self.config.temperature).unsqueeze(-3)
        return torch.where(self.own, actions, actions.detach()).flatten(-2)

    def _one_hot(self, actions: Tensor, like: Tensor) -> Tensor:
        """One-hot encoding [..., n * A] of joint actions [..., n] int64, in the dtype of `like`."""
        return F.one_hot(actions, self.n_actions).flatten(-2).to(like.dtype)

    def update_targets(self) -> None:
        """Count an update, and update the target critic and the target agents."""
        super().update_targets()
        update_target(self.config, self.updates, self.target_actor, self.actor_parameters)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, statistics and the generator; see `Algorithm.state_dict`."""
        state = super().state_dict()
        state["target_actor"] = self.target_actor.values.data
        state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.target_actor.values.data.copy_(saved["target_actor"])
        self.generator.set_state(saved["generator"])


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Finite Gumbel noise, -log of exponential noise, of the shape and dtype of `like`."""
    return -torch.empty_like(like).exponential_(generator=generator).clamp_(min=torch.finfo(like.dtype).tiny).log_()


def straight_through(log_probs: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """One-hot argmax (log_probs + noise), with the gradient of softmax((log_probs + noise) / temperature).

    Args:
        log_probs: [..., A].
        noise: Gumbel noise, [..., A].
        temperature: Above 0.

    Returns:
        [..., A].
    """
    soft = F.softmax((log_probs + noise) / temperature, -1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard - soft.detach() + soft


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Maddpg:
    """Build the algorithm of `algorithm=maddpg`."""
    assert isinstance(run.algorithm, Config)
    return Maddpg(run.algorithm, run.train, env)
