"""COMA, counterfactual multi-agent policy gradients (Foerster et al. 2018, arXiv 1705.08926).

    policy:     pi(u | h) = (1 - epsilon) softmax(z)_u + epsilon / |available u|, without epsilon in evaluation
    critic:     Q(s, o^a, a, u^-a) gives the value of each action of agent a while the others do u^-a
    learns:     for t = T ... 1: one step down mean [(Q(s_t, u_t) - y_t)^2], y_t an n-step or TD(lambda) return with the target Q
    advantage:  A^a(s, u) = Q(s, u) - sum_u' pi^a(u' | h^a) Q(s, (u^-a, u')), Q as it is after these steps
    agents:     one step up mean [A^a log pi^a(u^a | h^a) + entropy * H(pi^a)], A held fixed

The epsilon is a part of the policy whose gradient is followed; it stays what it is at the beginning of a rollout. Its schedule is
that of PyMARL, the authors' code. The gradient is the critic's judgement alone, without a return of the rollout in it, so that it
follows a critic which is wrong, and a policy can be nearly certain before the critic has learnt. On lbf 8x8-2p-2f-coop-2s with one
step of the critic for a rollout (`critic_sweep=false`), the policy's entropy was 0.36 nats after 150k steps, of 1.5 at the start,
at a return of 0.08; with the published step for each time step it was 0.87, at a return of 0.42 (one seed, episodes of training).
An entropy bonus of 0.01 or 0.1 in the place of these steps did not help (0.08 and 0.16 after 110k steps, against 0.19 to 0.23).
On climbing it is certain of the safe joint action before the critic knows that one agent alone could do better from there, and what
epsilon still draws has next to no gradient; with a larger bonus [entropy=0.2] it goes on to the second-best equilibrium.

Where it deviates from the publication:
1. The target critic follows softly, once for each update; there, it is a copy that is renewed every 150 steps of the critic.
2. There are 10 episodes in a batch instead of 30. Targets are 10-step returns [targets=td_lambda is the published TD(0.8)], and
   there is a bonus for entropy [entropy=0].
3. The critic does not see the joint action before this one. It sees an agent's own if the agent does (`last_action`).
4. At the end of an episode that was truncated, the value of the last state is that of a joint action drawn from the policy.

EPyMARL (Papoudakis et al. 2021, arXiv 2006.07869), whose settings `train=paper` has, lets the critic take one step for a rollout,
leaves out the epsilon and trains for 20 million steps. Its critic does not see what the agent observes, and its advantage is of Q
as it was before the critic's step; both are here as published. A policy that is drawn from can be far better than its most probable
actions [evaluation=greedy]: 0.42 against 0.08 in the case above.

The steps of the critic, one after another, make an update five times as long as with one of them, and two and a half to three times
as long as one of Q-learning with QMIX on as many episodes (tests/bench/updates.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionCritic, ActorCritic, OnPolicyConfig, mean
from qllm_exp.algorithms.base import EpisodeBatch, linear
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.agents import TeamNetwork


@dataclass
class Config(OnPolicyConfig):
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


class Coma(ActionCritic, ActorCritic):
    """Agents, and a critic that knows the state and what the other agents do.

    Args:
        as `ActorCritic`'s.
    """

    config: Config
    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.epsilon = config.epsilon_start  # of the policy that played the latest rollout
        others = ~torch.eye(env.n_agents, dtype=torch.bool, device=env.device)
        self.others = others.repeat_interleave(env.n_actions, 1).float()  # [n, n * A], 0 at an agent's own actions

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        return self.feed_forward(env.state_dim + self.inputs.size + env.n_agents * env.n_actions, env.n_actions)

    def policy(self, logits: Tensor, available_actions: Tensor, env_step: int | None) -> MaskedCategorical:
        if env_step is None:
            return super().policy(logits, available_actions, env_step)
        self.epsilon = self._epsilon(env_step)
        return MaskedCategorical(logits, available_actions, self.epsilon)

    def _epsilon(self, env_step: int) -> float:
        c = self.config
        return linear(c.epsilon_start, c.epsilon_end, c.epsilon_steps, env_step)

    def exploration(self, env_step: int) -> dict[str, float]:
        return {"epsilon": self._epsilon(env_step)}

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """The gradient steps of the critic, then one of the agents."""
        inputs = self.inputs.along(batch.obs, batch.actions)
        logits = self.agents.unroll(inputs)  # [T + 1, B, n, A]
        policy = MaskedCategorical(logits, batch.available_actions, self.epsilon)
        actions = self.all_actions(batch, policy)
        seen = self.critic_inputs(batch.state, inputs, actions)
        with torch.no_grad():
            target = self.targets(batch, _of(self.target_critic.unroll(seen), actions)[1:])
        chosen, critic_norm = self._learn_critic(seen[:-1], actions[:-1], target, batch.mask)
        self.update_target()
        with torch.no_grad():
            advantage = counterfactual_advantage(self.critic.unroll(seen[:-1]), policy.probs[:-1], actions[:-1])
        gain = mean(advantage * policy.log_prob(actions)[:-1], batch.mask)
        entropy = mean(policy.entropy[:-1], batch.mask)
        norm = self.improve_agents(-gain - self.config.entropy * entropy)
        error = mean((chosen - target).square(), batch.mask)
        figures = {"policy_loss": -gain, "value_loss": error, "entropy": entropy, "q": mean(chosen, batch.mask)}
        figures |= {"grad_norm": norm, "critic_grad_norm": critic_norm}
        return {name: value.detach() for name, value in figures.items()}

    def _learn_critic(self, seen: Tensor, actions: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Let the critic learn `target` [T, B, n]. Returns what it said just before [T, B, n], and the mean norm of its gradients.

        Args:
            seen: [T, B, n, I]; actions: [T, B, n] int64; mask: [T, B] bool.
        """
        backwards = [slice(t, t + 1) for t in reversed(range(len(target)))]
        said, norms = torch.empty_like(target), []
        for part in backwards if self.config.critic_sweep else [slice(None)]:
            value = _of(self.critic.unroll(seen[part]), actions[part])
            norms.append(self.improve_critic(mean((value - target[part]).square(), mask[part])))
            said[part] = value.detach()
        return said, torch.stack(norms).mean()

    def critic_inputs(self, state: Tensor, inputs: Tensor, actions: Tensor) -> Tensor:
        """What the critic sees of each agent [..., n, I]: the state, what the agent sees, and what the others do, one-hot.

        Args:
            state: [..., S]; inputs: [..., n, agent inputs]; actions: [..., n] int64.
        """
        joint = F.one_hot(actions, self.n_actions).to(state.dtype).flatten(-2)
        return torch.cat([self.of_each_agent(state), inputs, self.of_each_agent(joint) * self.others], -1)


def counterfactual_advantage(q: Tensor, probs: Tensor, actions: Tensor) -> Tensor:
    """[..., n] how much better an agent's action is than what its policy does on average, the others' actions being as they are.

    Args:
        q: [..., n, A] the values of each agent's actions. probs: [..., n, A] its policy. actions: [..., n] int64, those taken.
    """
    return _of(q, actions) - (probs * q).sum(-1)


def _of(q: Tensor, actions: Tensor) -> Tensor:
    """[..., n] from q [..., n, A] and actions [..., n]."""
    return q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Coma:
    assert isinstance(run.algorithm, Config)
    return Coma(run.algorithm, run.train, env)
