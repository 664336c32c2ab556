"""MASER, subgoals from the replay buffer (Jeon et al. 2022, arXiv 2206.10607): Q-learning with a mixer, and more to learn from.

    subgoal:      g_i = the step t of a sampled episode where alpha Q_i^-(o_t, a*_t) + (1 - alpha) Q_tot^-(s_t, a*_t) / n is largest
    intrinsic:    rho_i,t = -||phi(o_i,t) - phi(o_i,g_i)||           phi: a network with one hidden layer, the same for all agents
    team:         r'_t = r_t + lambda mean_i rho_i,t                what Q_tot learns from, as in Q-learning
    individual:   L_I = sum_i (Q_i(o_t, a_t) - y_i,t)^2              y_i: return of w_i,t r'_t + lambda rho_i,t and of Q_i^-,
                                                                     w_t the softmax over the agents of Q_i^-(o_{t+1}, a*_{t+1})
    exploration:  L_E = KL(softmax Q_i(o_t, .), uniform)             from the subgoal on
    distance:     L_D = (||phi(o_i,t) - phi(o_i,g_i)|| - D_i,t)^2    D = 1 - cos(Q_i^-(o_t, .), Q_i^-(o_g, .)) trains phi alone
    loss:         that of Q-learning + w_I L_I + w_E L_E + w_D L_D

a* are the actions that the targets of Q_tot take for the best, Q^- is by the target networks. Losses are means over the steps that
happened, L_D and L_E over the agents too; L_E is first a mean over each agent's steps from its subgoal on.

Of the publication and its public code:
- w_I = w_E = w_D = .001 is what the command in its README says. Its qmix.yaml comes to .0008, .00006 and .00014.
- r' and not r is shared out by w_t, w_t is of the step after t, and the subgoal of a*, as in the public code.
- Q_tot in the subgoal is the mixer's value of a*: Q_jt with mixer=qtran, the monotone value with wqmix. With mixer=none, where
  every Q stands for the team's return, it is their sum.

Where it deviates:
1. In the public code L_D and L_E train nothing: phi is in no optimiser, and L_E is left out (in ports of an earlier state, it is of
   the target networks). Here L_E is of the agents in training, and phi has an optimiser of its own, with the same settings:
   nothing else moves phi, so that with Adam it learns as fast whatever w_D is.
2. The public code takes padding for a part of the episode: subgoals may lie in it, and L_D and L_E are averaged over it. Not here.
3. An unavailable action has the Q -9999999 in the public code, so that D says little else than what is available. Here it has the
   Q 0 in D, and L_E compares distributions over the actions that are available.
4. rho is added to rewards as Q-learning has them, standardised where `train` says so, and y has the n-step or TD(lambda) form that
   is configured, as the target of Q_tot; published are raw rewards and one step (train=paper).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import FlatParameters, optimiser
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.algorithms.q_learning import AuxiliaryUpdate, QLearning, QValues
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer
from qllm_exp.networks.layers import mlp


@dataclass
class Config(QLearningConfig):
    name: str = "maser"
    alpha: float = schema.number(0.5, 0, 1)
    intrinsic: float = schema.number(0.03, 0)
    individual: float = schema.number(0.001, 0)
    exploration: float = schema.number(0.001, 0)
    distance: float = schema.number(0.001, 0)
    phi_hidden: int = schema.number(128, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer


class Maser(QLearning):
    """Q-learning's agents and mixer, and phi.

    Args:
        as `QLearning`'s.
    """

    config: Config

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        super().__init__(config, train, env, mixer)
        self.phi = mlp(env.obs_dim, config.phi_hidden, env.n_actions).to(env.device)
        self.phi_parameters = FlatParameters([self.phi])
        self.phi_optimiser = optimiser(train, self.phi_parameters)

    def further(self, batch: EpisodeBatch, values: QValues, reward: Tensor) -> AuxiliaryUpdate:
        c, available = self.config, batch.available_actions[:-1]
        goal = subgoals(self.promise(batch, values), batch.mask)
        embedded = self.phi(batch.obs[:-1])
        away = torch.linalg.vector_norm(embedded - at(goal, embedded), dim=-1)  # [T, B, n]
        distance = mean((away - action_distance(values.target[:-1], available, goal)).square(), batch.mask)
        self._improve_phi(c.distance * distance)

        intrinsic = -away.detach()
        reward = reward + c.intrinsic * intrinsic.mean(-1)
        chosen = values.online[:-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        error = chosen - self.individual_targets(batch, values, reward, intrinsic)
        individual = self.n_agents * mean(error.square(), batch.mask)
        exploration = tail_mean(from_uniform(values.online[:-1], available), batch.mask, goal)
        loss = c.individual * individual + c.exploration * exploration
        figures = {
            "intrinsic_reward": mean(intrinsic, batch.mask),
            "individual_loss": individual,
            "exploration_loss": exploration,
            "distance_loss": distance,
        }
        return AuxiliaryUpdate(reward, loss, {name: value.detach() for name, value in figures.items()})

    @torch.no_grad()
    def promise(self, batch: EpisodeBatch, values: QValues) -> Tensor:
        """[T, B, n] alpha Q_i + (1 - alpha) Q_tot / n of the best actions, by the target networks."""
        joint = JointAction(values.target[:-1], batch.available_actions[:-1], values.best[:-1])
        q_tot = self.target_mixer.value(joint, batch.state[:-1])
        if self.mixer.per_agent:
            q_tot = q_tot.sum(-1)
        return self.config.alpha * joint.qs + (1 - self.config.alpha) * q_tot.unsqueeze(-1) / self.n_agents

    @torch.no_grad()
    def individual_targets(self, batch: EpisodeBatch, values: QValues, reward: Tensor, intrinsic: Tensor) -> Tensor:
        """y [T, B, n] of the individual Qs.

        Args:
            reward: [T, B] r'. intrinsic: [T, B, n] rho.
        """
        after = values.target[1:].gather(-1, values.best[1:].unsqueeze(-1)).squeeze(-1)
        own = after.softmax(-1) * reward.unsqueeze(-1) + self.config.intrinsic * intrinsic
        return self.returns(batch, own, after)

    def _improve_phi(self, loss: Tensor) -> None:
        self.phi_parameters.gradient.zero_()
        torch.autograd.backward(loss, inputs=list(self.phi.parameters()))
        self.phi_parameters.clip_(self.train.grad_norm_clip)
        self.phi_optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        own = {"phi": self.phi_parameters.values.data, "phi_optimiser": self.phi_optimiser.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.phi_parameters.values.data.copy_(saved["phi"])
        self.phi_optimiser.load_state_dict(saved["phi_optimiser"])

    def parameter_counts(self) -> dict[str, int]:
        return super().parameter_counts() | {"phi": self.phi_parameters.values.numel()}


def subgoals(promise: Tensor, mask: Tensor) -> Tensor:
    """[B, n] int64, the step of each agent's subgoal: where `promise` [T, B, n] is largest, of those that happened, mask [T, B]."""
    return promise.masked_fill(~mask.unsqueeze(-1), -torch.inf).argmax(0)


def at(goal: Tensor, values: Tensor) -> Tensor:
    """[1, B, n, D] values [T, B, n, D] at each agent's own step, goal [B, n] int64."""
    return values.take_along_dim(goal[None, ..., None], 0)


def action_distance(qs: Tensor, available: Tensor, goal: Tensor) -> Tensor:
    """D [T, B, n], 0 to 2: how differently an agent rates its actions here and at its subgoal.

    Args:
        qs: [T, B, n, A] individual Qs. available: [T, B, n, A] bool. goal: [B, n] int64, as `subgoals`.
    """
    qs = qs.masked_fill(~available, 0.0)
    return 1 - F.cosine_similarity(qs, at(goal, qs), dim=-1)


def from_uniform(qs: Tensor, available: Tensor) -> Tensor:
    """[...] KL(softmax of Qs [..., A], uniform), both over the actions that are available [..., A]; 0 where none is."""
    policy = MaskedCategorical(qs, available)
    count = available.sum(-1, keepdim=True).clamp(min=1).to(qs.dtype)
    return (policy.probs * (policy.log_probs + count.log()).masked_fill(~available, 0.0)).sum(-1)


def tail_mean(values: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
    """A scalar: values [T, B, n] from each agent's subgoal [B, n] to the end of the episode, their mean, and the mean of these.

    Args:
        mask: [T, B] bool, the steps that happened.
    """
    steps = torch.arange(len(values), device=values.device).view(-1, 1, 1)
    weight = (mask.unsqueeze(-1) & (steps >= goal)).to(values.dtype)
    return ((values * weight).sum(0) / weight.sum(0)).mean()


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Maser:
    assert isinstance(run.algorithm, Config)
    return Maser(run.algorithm, run.train, env, mixer)
