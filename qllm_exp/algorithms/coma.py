"""COMA, counterfactual multi-agent policy gradients (Foerster et al. 2018, arXiv 1705.08926).

    critic:     Q(s, o^a, a, u^-a) gives the value of each action of agent a while the others do u^-a
    advantage:  A^a(s, u) = Q(s, u) - sum_u' pi^a(u' | h^a) Q(s, (u^-a, u'))
    agents:     maximise mean [A^a log pi^a(u^a | h^a) + entropy * H(pi^a)], A held fixed
    critic:     minimise mean [(Q(s_t, u_t) - y_t)^2], y_t an n-step or TD(lambda) return with the target critic's Q

Where it deviates from the publication:
1. The critic takes one gradient step on all steps of all episodes together, rather than one for each step, backwards in time.
2. Exploration is by an entropy bonus instead of an epsilon-floor under the policy, targets are 10-step returns instead of
   TD(0.8), the target critic follows softly, and there are 10 episodes in a batch instead of 30: as in EPyMARL (Papoudakis et
   al. 2021). `targets=td_lambda` is the published kind of target.
3. The critic does not see the joint action before this one. It sees an agent's own if the agent does (`last_action`).
4. At the end of an episode that was truncated, the value of the last state is that of a joint action drawn from the policy.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionCritic, ActorCritic, mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.categorical import MaskedCategorical
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.team import TeamNetwork
from qllm_exp.schema import Coma as Config
from qllm_exp.schema import Run, Train

ACCEPTS = ("none",)


class Coma(ActionCritic, ActorCritic):
    """Agents, and a critic that knows the state and what the other agents do.

    Args:
        as `ActorCritic`'s.
    """

    critic: TeamNetwork
    target_critic: TeamNetwork

    def __init__(self, config: Config, train: Train, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        others = ~torch.eye(env.n_agents, dtype=torch.bool, device=env.device)
        self.others = others.repeat_interleave(env.n_actions, 1).float()  # [n, n * A], 0 at an agent's own actions

    def build_critic(self, env: TeamEnv) -> TeamNetwork:
        return self.feed_forward(env.state_dim + self.inputs.size + env.n_agents * env.n_actions, env.n_actions)

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One gradient step of agents and critic."""
        inputs = self.inputs.along(batch.obs, batch.actions)
        policy = MaskedCategorical(self.agents.unroll(inputs), batch.available_actions)  # [T + 1, B, n, A]
        actions = self.all_actions(batch, policy)
        seen = self.critic_inputs(batch.state, inputs, actions)
        with torch.no_grad():
            target = self.targets(batch, _of(self.target_critic.unroll(seen), actions)[1:])
        q = self.critic.unroll(seen[:-1])
        chosen = _of(q, actions[:-1])
        advantage = counterfactual_advantage(q.detach(), policy.probs[:-1].detach(), actions[:-1])
        gain = mean(advantage * policy.log_prob(actions)[:-1], batch.mask)
        entropy = mean(policy.entropy[:-1], batch.mask)
        error = mean((chosen - target).square(), batch.mask)
        norm = self.improve_agents(-gain - self.config.entropy * entropy)
        critic_norm = self.improve_critic(error)
        self.update_target()
        figures = {"policy_loss": -gain, "value_loss": error, "entropy": entropy, "q": mean(chosen, batch.mask)}
        figures |= {"grad_norm": norm, "critic_grad_norm": critic_norm}
        return {name: value.detach() for name, value in figures.items()}

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


def make(run: Run, env: TeamEnv, mixer: Mixer) -> Coma:
    assert isinstance(run.algorithm, Config)
    return Coma(run.algorithm, run.train, env)
