"""MASER, subgoals from the replay buffer (Jeon et al. 2022, arXiv 2206.10607): Q-learning with a mixer and auxiliary losses.

    subgoal:      g_i = the step t of a sampled episode where alpha Q_i^-(o_t, a*_t) + (1 - alpha) Q_tot^-(s_t, a*_t) / n is largest
    intrinsic:    rho_i,t = -||phi(o_i,t) - phi(o_i,g_i)||           phi: a network with one hidden layer, the same for all agents
    team:         r'_t = r_t + lambda mean_i rho_i,t                the reward that Q_tot learns from, as in Q-learning
    individual:   L_I = sum_i (Q_i(o_t, a_t) - y_i,t)^2              y_i: return of w_i,t r'_t + lambda rho_i,t and of Q_i^-,
                                                                     w_t the softmax over the agents of Q_i^-(o_{t+1}, a*_{t+1})
    exploration:  L_E = KL(softmax Q_i(o_t, .), uniform)             from the subgoal on
    distance:     L_D = (||phi(o_i,t) - phi(o_i,g_i)|| - D_i,t)^2    D = 1 - cos(Q_i^-(o_t, .), Q_i^-(o_g, .)) trains phi alone
    loss:         that of Q-learning + w_I L_I + w_E L_E + w_D L_D

a* are the actions that the targets of Q_tot treat as best; Q^- are the target networks. Losses are means over the steps of
episodes, and L_D and L_E over the agents too. L_E is first averaged over each agent's steps from its subgoal on.

Choices between the publication and its public code:
- w_I = w_E = w_D = .001 are the values of the command in the README of the code. Its qmix.yaml amounts to .0008, .00006 and .00014.
- As in the code, w_t divides r' rather than r among the agents, w_t is that of the step after t, and the subgoal is that of a*.
- Q_tot in the subgoal is the mixer's value of a*: Q_jt with mixer=qtran, the monotone value with wqmix. With mixer=none, where
  each Q estimates the team's return, it is their sum.

Deviations:
1. In the public code L_D and L_E are in the loss but train nothing: phi is in no optimiser, and L_E is of the target networks.
   Here L_E is of the online agents, and phi has its own optimiser with the same settings. phi has no other loss, so with Adam it
   learns at the same speed for every w_D.
2. The public code treats padding as part of the episode: subgoals may lie in it, and L_D and L_E are averaged over it. Here
   padding is excluded.
3. In the public code an unavailable action has Q -9999999, so that D mainly measures which actions are available. Here such an
   action has Q 0 in D, and L_E compares distributions over the available actions.
4. rho is added to the rewards of Q-learning, which are standardised if configured, and y has the configured n-step or
   TD(lambda) form, like the target of Q_tot. The publication uses raw rewards and one step (train=paper).
5. Runs with train=paper have 2 million steps, and 100 evaluation episodes every 50,000 steps. The command in the README of the
   public code has 3.005 million steps, and its file for StarCraft 24 episodes every 20,000 steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import masked_mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import FlatParameters, make_optimiser
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.algorithms.value_based import AuxiliaryUpdate, QValues
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.networks.layers import mlp


@dataclass
class Config(QLearningConfig):
    """Options of `algorithm=maser`; conf/algorithm/maser.yaml explains them."""

    name: str = "maser"
    alpha: float = schema.number(0.5, 0, 1)
    intrinsic: float = schema.number(0.03, 0)
    individual: float = schema.number(0.001, 0)
    exploration: float = schema.number(0.001, 0)
    distance: float = schema.number(0.001, 0)
    phi_hidden: int = schema.number(128, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer


class Maser(QLearning):
    """Q-learning's agents and mixer, and the embedding phi.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any mixer; it is moved to the environment's device.
    """

    config: Config

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        super().__init__(config, train, env, mixer)
        self.phi = mlp(env.obs_dim, config.phi_hidden, env.n_actions).to(env.device)
        self.phi_parameters = FlatParameters([self.phi])
        self.phi_optimiser = make_optimiser(train, self.phi_parameters)

    def auxiliary_loss(self, batch: EpisodeBatch, values: QValues, reward: Tensor) -> AuxiliaryUpdate:
        """Reward r', and w_I L_I + w_E L_E; also takes one gradient step of phi. See `ValueBased.auxiliary_loss`."""
        c, available = self.config, batch.available_actions[:-1]
        goal = subgoals(self.subgoal_score(batch, values), batch.mask)
        steps = batch.packed_steps()
        embedding = steps.unpack(self.phi(steps.pack(batch.obs[:-1])))
        goal_distance = torch.linalg.vector_norm(embedding - gather_at(goal, embedding), dim=-1)  # [T, B, n]
        target_distance = action_distance(values.target[:-1], available, goal)
        distance_loss = masked_mean((goal_distance - target_distance).square(), batch.mask)
        self._update_phi(c.distance * distance_loss)

        intrinsic = -goal_distance.detach()
        reward = reward + c.intrinsic * intrinsic.mean(-1)
        chosen_qs = values.online[:-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        error = chosen_qs - self.individual_targets(batch, values, reward, intrinsic)
        individual_loss = self.n_agents * masked_mean(error.square(), batch.mask)
        exploration_loss = tail_mean(kl_from_uniform(values.online[:-1], available), batch.mask, goal)
        loss = c.individual * individual_loss + c.exploration * exploration_loss
        metrics = {
            "intrinsic_reward": masked_mean(intrinsic, batch.mask),
            "individual_loss": individual_loss,
            "exploration_loss": exploration_loss,
            "distance_loss": distance_loss,
        }
        return AuxiliaryUpdate(reward, loss, {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def subgoal_score(self, batch: EpisodeBatch, values: QValues) -> Tensor:
        """Score of each step as a subgoal: alpha Q_i + (1 - alpha) Q_tot / n of the best actions, by the target networks.

        Args:
            batch: The episodes.
            values: The agents' Qs in them.

        Returns:
            [T, B, n].
        """
        steps = batch.packed_steps()
        joint = JointAction(*(steps.pack(x[:-1]) for x in (values.target, batch.available_actions, values.best)))
        q_tot = self.target_mixer.q_tot(joint, steps.pack(batch.state[:-1]))
        if self.mixer.per_agent:
            q_tot = q_tot.sum(-1)
        alpha = self.config.alpha
        return steps.unpack(alpha * joint.qs + (1 - alpha) * q_tot.unsqueeze(-1) / self.n_agents)

    @torch.no_grad()
    def individual_targets(self, batch: EpisodeBatch, values: QValues, reward: Tensor, intrinsic: Tensor) -> Tensor:
        """Targets y of the individual Qs.

        Args:
            batch: The episodes.
            values: The agents' Qs in them.
            reward: r', [T, B].
            intrinsic: rho, [T, B, n].

        Returns:
            [T, B, n].
        """
        next_qs = values.target[1:].gather(-1, values.best[1:].unsqueeze(-1)).squeeze(-1)
        agent_reward = next_qs.softmax(-1) * reward.unsqueeze(-1) + self.config.intrinsic * intrinsic
        return self.returns(batch, agent_reward, next_qs)

    def _update_phi(self, loss: Tensor) -> None:
        self.phi_parameters.gradient.zero_()
        torch.autograd.backward(loss, inputs=self.phi_parameters.parameters)
        self.phi_parameters.gradient_step(self.phi_optimiser, self.train.grad_norm_clip)

    def state_dict(self) -> dict[str, Any]:
        """Q-learning's state, phi and its optimiser; see `Algorithm.state_dict`."""
        state = super().state_dict()
        state["phi"] = self.phi_parameters.values.data
        state["phi_optimiser"] = self.phi_optimiser.state_dict()
        return state

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(saved)
        self.phi_parameters.values.data.copy_(saved["phi"])
        self.phi_optimiser.load_state_dict(saved["phi_optimiser"])

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of agents, mixer and phi."""
        return super().parameter_counts() | {"phi": self.phi_parameters.values.numel()}


def subgoals(score: Tensor, mask: Tensor) -> Tensor:
    """Step of each agent's subgoal: the one with the highest score in its episode.

    Args:
        score: [T, B, n].
        mask: Whether the step is part of the episode, [T, B] bool.

    Returns:
        [B, n] int64.
    """
    return score.masked_fill(~mask.unsqueeze(-1), -torch.inf).argmax(0)


def gather_at(goal: Tensor, values: Tensor) -> Tensor:
    """Values at each agent's subgoal.

    Args:
        goal: Step of each agent's subgoal, [B, n] int64.
        values: [T, B, n, D].

    Returns:
        [1, B, n, D].
    """
    return values.take_along_dim(goal[None, ..., None], 0)


def action_distance(qs: Tensor, available: Tensor, goal: Tensor) -> Tensor:
    """Distance D between an agent's action values at each step and at its subgoal, 0 to 2.

    Args:
        qs: Individual Qs, [T, B, n, A].
        available: [T, B, n, A] bool.
        goal: Step of each agent's subgoal, [B, n] int64.

    Returns:
        [T, B, n].
    """
    qs = qs.masked_fill(~available, 0.0)
    return 1 - F.cosine_similarity(qs, gather_at(goal, qs), dim=-1)


def kl_from_uniform(qs: Tensor, available: Tensor) -> Tensor:
    """KL divergence of the softmax of Qs from the uniform distribution, both over the available actions.

    Args:
        qs: [..., A].
        available: [..., A] bool.

    Returns:
        [...]; 0 where no action is available.
    """
    policy = MaskedCategorical(qs, available)
    count = available.sum(-1, keepdim=True).clamp(min=1).to(qs.dtype)
    return (policy.probs * (policy.log_probs + count.log()).masked_fill(~available, 0.0)).sum(-1)


def tail_mean(values: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
    """Mean over each agent's steps from its subgoal to the end of the episode, averaged over agents and episodes.

    Args:
        values: [T, B, n].
        mask: Whether the step is part of the episode, [T, B] bool.
        goal: Step of each agent's subgoal, [B, n] int64.

    Returns:
        A scalar.
    """
    steps = torch.arange(len(values), device=values.device).view(-1, 1, 1)
    weight = (mask.unsqueeze(-1) & (steps >= goal)).to(values.dtype)
    return ((values * weight).sum(0) / weight.sum(0)).mean()


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Maser:
    """Build the algorithm of `algorithm=maser`."""
    assert isinstance(run.algorithm, Config)
    return Maser(run.algorithm, run.train, env, mixer)
