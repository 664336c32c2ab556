"""COMA, counterfactual multi-agent policy gradients (Foerster et al. 2018, arXiv 1705.08926).

    policy:     pi(u | h) = (1 - epsilon) softmax(z)_u + epsilon / |available u|, without epsilon in evaluation
    critic:     Q(s, o^a, a, u^-a) gives the value of each action of agent a, given the other agents' actions u^-a
    learns:     for t = T ... 1: one step down mean [(Q(s_t, u_t) - y_t)^2], y_t an n-step or TD(lambda) return with the target Q
    advantage:  A^a(s, u) = Q(s, u) - sum_u' pi^a(u' | h^a) Q(s, (u^-a, u')), Q after these steps
    agents:     one step up mean [A^a log pi^a(u^a | h^a) + entropy * H(pi^a)], A held fixed

Epsilon is part of the policy whose gradient is followed. Its value is fixed at the start of a rollout; its schedule is that of
PyMARL, the authors' code.

The gradient depends on the critic alone and contains no return of the rollout. Agents therefore also follow a critic that is
wrong, and the policy can become nearly deterministic before the critic has learned. Measurements on lbf 8x8-2p-2f-coop-2s with
env.mask_ineffective=true (one seed, episodes of training): with one critic step per rollout (`critic_sweep=false`), the
policy's entropy was 0.36 nats after 150k steps (1.5 at the start) at a return of 0.08. With one critic step per time step, as
published, it was 0.87 at a return of 0.42. An entropy bonus of 0.01 or 0.1 instead of these steps did not help (0.08 and 0.16
after 110k steps, against 0.19 to 0.23). On the climbing game, the policy settles on the safe joint action before the critic
knows that one agent could improve on it alone; the remaining epsilon exploration contributes next to no gradient. With a larger
bonus [entropy=0.2] it moves on to the second-best equilibrium.

Deviations from the publication:
1. The target critic follows softly, once per update. In the publication it is a copy renewed every 150 steps of the critic.
2. A batch has 10 episodes instead of 30. Targets are 10-step returns [targets=td_lambda is the published TD(0.8)], and there is
   an entropy bonus [entropy=0].
3. The critic does not see the previous joint action. It sees an agent's own previous action if the agent does (`last_action`).
4. At the end of a truncated episode, the value of the last state is that of a joint action sampled from the policy.

`train=paper` has the settings of EPyMARL (Papoudakis et al. 2021, arXiv 2006.07869), whose critic takes one step per rollout,
whose policy has no epsilon, and which trains for 20 million steps. A sampled policy can be far better than its most probable
actions [evaluation=greedy]: 0.42 against 0.08 in the case above. Where `train=paper` differs from EPyMARL's code:
1. EPyMARL's critic does not see the agent's observation, and its advantage uses Q before the critic's step. In both points this
   module follows the publication.
2. EPyMARL's critic loss is the sum over the agents of their mean squared errors. Here it is the mean over the agents, as the
   agents' loss is. With Adam this matters only where the gradient is clipped.
3. EPyMARL's n-step returns within n steps of the end of the longest episode of a batch bootstrap past terminations. Here no
   return does.
4. Rewards are standardised by the moments of all rewards so far. EPyMARL counts padding as a reward of 0.
5. The critic sees the state of the environment's layout; EPyMARL's state is the observations of all agents in a row.

An update takes 2.0 (mpe) to 2.4 times (lbf) as long as an update of Q-learning with QMIX on the same number of episodes
(tests/bench/updates.py), with as much arithmetic. The steps of the critic are sequential and small, so most of the time passes
between operations. It does not shrink with the lengths of the episodes, but with the length of the longest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionValueActorCritic, OnPolicyActorCritic, OnPolicyConfig, masked_mean
from qllm_exp.algorithms.base import EpisodeBatch, linear_schedule
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.agents import FeedForwardAgent, TeamNetwork


@dataclass
class Config(OnPolicyConfig):
    """Options of `algorithm=coma`; conf/algorithm/coma.yaml explains them."""

    name: str = "coma"
    n_step: int = schema.number(10, 1)
    td_lambda: float = schema.number(0.8, 0, 1)
    target_tau: float = schema.number(0.3, 0, 1)
    entropy: float = schema.number(0.01, 0)
    critic_sweep: bool = True
    epsilon_start: float = schema.number(0.5, 0, 1)
    epsilon_end: float = schema.number(0.01, 0, 1)
    epsilon_steps: int = schema.number(100_000, 1)


ACCEPTS = ("none",)


class Coma(ActionValueActorCritic, OnPolicyActorCritic):
    """Agents, and a critic of the state and the other agents' actions.

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
        self.epsilon = config.epsilon_start  # of the policy that played the last rollout
        others = ~torch.eye(env.n_agents, dtype=torch.bool, device=env.device)
        self.others = others.repeat_interleave(env.n_actions, 1).float()  # [n, n * A], 0 at an agent's own actions

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        """Build the critic: one output per action of the agent."""
        return self.feed_forward(env.state_dim + self.inputs.size + env.n_agents * env.n_actions, env.n_actions)

    def policy(self, logits: Tensor, available_actions: Tensor, env_step: int | None) -> MaskedCategorical:
        """The policy with its uniform share epsilon, which evaluation leaves out; see `ActorCritic.policy`."""
        if env_step is None:
            return super().policy(logits, available_actions, env_step)
        self.epsilon = self._epsilon(env_step)
        return MaskedCategorical(logits, available_actions, self.epsilon)

    def _epsilon(self, env_step: int) -> float:
        c = self.config
        return linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, env_step)

    def exploration(self, env_step: int) -> dict[str, float]:
        """Current epsilon."""
        return {"epsilon": self._epsilon(env_step)}

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take the gradient steps of the critic, then one of the agents, and return metrics to log."""
        steps, observations = batch.packed_steps(), batch.packed_observations()
        inputs = self.inputs.sequence_inputs(batch.obs, batch.actions)
        logits = observations.unpack(self.agents.unroll(observations.pack(inputs), observations))  # [T + 1, B, n, A]
        policy = MaskedCategorical(logits, batch.available_actions, self.epsilon)
        actions = self.all_actions(batch, policy)
        log_probs = policy.log_prob(actions)
        critic_inputs = self.critic_inputs(batch.state, inputs, actions)
        with torch.no_grad():
            next_qs = steps.unpack(self.target_critic.unroll(steps.pack(critic_inputs[1:])))
            target = self.targets(batch, select_actions(next_qs, actions[1:]))
        critic_inputs, actions, target = (steps.pack(x) for x in (critic_inputs[:-1], actions[:-1], target))
        mask = steps.pack(batch.mask)
        q, critic_norm = self._fit_critic(critic_inputs, actions, target, mask, steps.sizes)
        self.update_targets()
        with torch.no_grad():
            all_qs = self.critic.unroll(critic_inputs)
            advantage = counterfactual_advantage(all_qs, steps.pack(policy.probs[:-1]), actions)
        objective = masked_mean(advantage * steps.pack(log_probs[:-1]), mask)
        entropy = masked_mean(policy.entropy[:-1], batch.mask)
        norm = self.update_agents(-objective - self.config.entropy * entropy)
        metrics = {
            "policy_loss": -objective,
            "value_loss": masked_mean((q - target).square(), mask),
            "entropy": entropy,
            "q": masked_mean(q, mask),
            "grad_norm": norm,
            "critic_grad_norm": critic_norm,
        }
        return {name: value.detach() for name, value in metrics.items()}

    def _fit_critic(
        self, critic_inputs: Tensor, actions: Tensor, target: Tensor, mask: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Train the critic: one gradient step per time step, backwards in time, or one on all steps (`critic_sweep`).

        Args:
            critic_inputs: Packed, [1, M, n, I], or [T, B, n, I]. The other arguments are of the same leading shape.
            actions: [1, M, n] int64.
            target: Value targets, [1, M, n].
            mask: Whether the step is part of the episode, [1, M] bool.
            sizes: Number of episodes that have each step, [T] int64.

        Returns:
            Q [1, M, n] of each step just before its gradient step, and the mean norm of the gradients.
        """
        counts = sizes.tolist() if self.config.critic_sweep else [mask.numel()]
        tensors = (critic_inputs, actions, target, mask)
        parts = zip(*(torch.split(x.flatten(0, 1), counts) for x in tensors), strict=True)
        all_q, norms = [], []
        for part_inputs, part_actions, part_target, part_mask in reversed(list(parts)):
            all_q.append(self._critic_gradient(part_inputs, part_actions, part_target, part_mask))
            norms.append(self.critic_parameters.gradient_step(self.critic_optimiser, self.train.grad_norm_clip))
        return torch.cat(all_q[::-1]).view_as(target), torch.stack(norms).mean()

    def _critic_gradient(self, inputs: Tensor, actions: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Write the gradient of the critic's loss, the masked mean of (Q - target)^2.

        Args:
            inputs: [b, n, I], b steps of any episodes.
            actions: [b, n] int64.
            target: Value targets, [b, n].
            mask: Whether the step is part of its episode, [b] bool.

        Returns:
            Q [b, n] of the actions.
        """
        slope = mask.to(target.dtype).mul_(2).div_(mask.sum() * self.n_agents).unsqueeze(1).expand_as(target)
        tensors = (inputs, actions.unsqueeze(-1), target.unsqueeze(-1), slope.unsqueeze(-1))
        networks = self.critic.members
        by_network = [[x[:, i] for x in tensors] for i in range(self.n_agents)]
        if len(networks) == 1:
            by_network = [[x.flatten(0, 1) for x in tensors]]
        all_q = []
        for network, (rows, row_actions, row_target, row_slope) in zip(networks, by_network, strict=True):
            assert isinstance(network, FeedForwardAgent)

            def output_gradient(
                q: Tensor, actions: Tensor = row_actions, target: Tensor = row_target, slope: Tensor = row_slope
            ) -> Tensor:
                return torch.zeros_like(q).scatter_(1, actions, (q.gather(1, actions) - target) * slope)

            all_q.append(network.outputs_and_gradient(rows, output_gradient).gather(1, row_actions))
        return torch.cat(all_q, 1).view_as(target)

    def critic_inputs(self, state: Tensor, inputs: Tensor, actions: Tensor) -> Tensor:
        """Inputs of the critic for each agent: the state, the agent's own inputs, and the other agents' one-hot actions.

        Args:
            state: [..., state_dim].
            inputs: Inputs of the agents' networks, [..., n, agent inputs].
            actions: [..., n] int64.

        Returns:
            [..., n, I].
        """
        joint = F.one_hot(actions, self.n_actions).to(state.dtype).flatten(-2)
        others = self.broadcast_to_agents(joint) * self.others
        return torch.cat([self.broadcast_to_agents(state), inputs, others], -1)


def counterfactual_advantage(q: Tensor, probs: Tensor, actions: Tensor) -> Tensor:
    """Advantage of each agent's action over the expected value of its policy, with the other agents' actions fixed.

    Args:
        q: Values of each agent's actions, [..., n, A].
        probs: Policy of each agent, [..., n, A].
        actions: Actions taken, [..., n] int64.

    Returns:
        [..., n].
    """
    return select_actions(q, actions) - (probs * q).sum(-1)


def select_actions(q: Tensor, actions: Tensor) -> Tensor:
    """Values [..., n] of actions [..., n] int64, from the values [..., n, A] of all actions."""
    return q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Coma:
    """Build the algorithm of `algorithm=coma`."""
    assert isinstance(run.algorithm, Config)
    return Coma(run.algorithm, run.train, env)
