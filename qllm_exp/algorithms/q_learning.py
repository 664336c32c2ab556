"""Deep recurrent Q-learning with a mixer: IQL, VDN, QMIX and QLLM are this algorithm with different mixers.

Agents share one recurrent network; the target of the mixed value is
    y_t = r_t + gamma (1 - terminated_t) Q_tot^-(s_{t+1}, argmax_a Q(s_{t+1}, a)),
its n-step or TD(lambda) form (returns.py), with the argmax by the online network (double Q, van Hasselt et al. 2016) or
by the target network. Loss: squared error, averaged over the steps that happened.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qllm_exp.algorithms.base import Algorithm, EpisodeBatch
from qllm_exp.algorithms.parameters import FlatParameters
from qllm_exp.algorithms.returns import n_step, td_lambda
from qllm_exp.algorithms.statistics import RunningMoments
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer
from qllm_exp.networks.recurrent import RecurrentAgent
from qllm_exp.schema import QLearning as Config
from qllm_exp.schema import Run, Train

ACCEPTS: tuple[str, ...] | None = None  # every mixer
_MIXER = "mixer."  # how the names of the mixer's parameters begin, among those of a policy


class QLearning(Algorithm):
    """Agents, mixer, their target copies and one optimiser.

    Args:
        config: the `algorithm` group. train: the `train` group.
        env: what it acts in (sizes and device). mixer: any mixer; it is moved to the environment's device.
    """

    def __init__(self, config: Config, train: Train, env: TeamEnv, mixer: Mixer) -> None:
        self.config, self.train = config, train
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        inputs = env.obs_dim + (env.n_agents if config.agent_id else 0) + (env.n_actions if config.last_action else 0)
        self.agent = RecurrentAgent(inputs, env.n_actions, train.hidden).to(env.device)
        self.mixer: Mixer = mixer.to(env.device)
        self.target_agent, self.target_mixer = copy.deepcopy(self.agent), copy.deepcopy(self.mixer)
        self.online = FlatParameters([self.agent, self.mixer])
        self.target = FlatParameters([self.target_agent, self.target_mixer])
        self.target.values.requires_grad_(False)
        self.optimiser = _optimiser(train, self.online)
        self.rewards = RunningMoments(env.device)
        self.updates = 0

    # Acting

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor | None]:
        hidden = self.agent.initial_hidden(num_envs * self.n_agents, self.device)
        last = torch.zeros(num_envs, self.n_agents, self.n_actions, device=self.device)
        return hidden, last if self.config.last_action else None

    @torch.no_grad()
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        hidden, last = memory
        inputs = self._inputs(obs, last).flatten(0, 1)
        q, hidden = self.agent.step(inputs, hidden)
        q = q.view(available_actions.shape).masked_fill(~available_actions, -torch.inf)
        actions = q.argmax(-1)
        epsilon = self.config.epsilon_evaluation if env_step is None else self._epsilon(env_step)
        if epsilon > 0:
            draw = torch.rand(*actions.shape, self.n_actions + 1, generator=generator, device=self.device)
            anything = torch.where(available_actions, draw[..., 1:], -1.0).argmax(-1)  # uniform over what is available
            actions = torch.where(draw[..., 0] < epsilon, anything, actions)
        if last is not None:
            last = F.one_hot(actions, self.n_actions).to(obs.dtype)
        return actions, (hidden, last)

    def _epsilon(self, env_step: int) -> float:
        c = self.config
        return c.epsilon_start + (c.epsilon_end - c.epsilon_start) * min(1.0, env_step / c.epsilon_steps)

    def exploration(self, env_step: int) -> dict[str, float]:
        return {"epsilon": self._epsilon(env_step)}

    def _inputs(self, obs: Tensor, last_actions: Tensor | None) -> Tensor:
        """[..., n, obs_dim] to [..., n, inputs]: the observation, who one is, what one did last."""
        parts = [obs]
        if self.config.agent_id:
            identity = torch.eye(self.n_agents, device=self.device, dtype=obs.dtype)
            parts.append(identity.expand(*obs.shape[:-1], self.n_agents))
        if last_actions is not None:
            parts.append(last_actions)
        return torch.cat(parts, -1)

    def _along(self, obs: Tensor, actions: Tensor) -> Tensor:
        """[T + 1, B * n, inputs] along episodes, from obs [T + 1, B, n, obs_dim] and actions [T, B, n]."""
        last = None
        if self.config.last_action:
            taken = F.one_hot(actions, self.n_actions).to(obs.dtype)
            last = torch.cat([torch.zeros_like(taken[:1]), taken])
        return self._inputs(obs, last).flatten(1, 2)

    @torch.no_grad()
    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor:
        all_qs = self.agent.unroll(self._along(obs, actions)).view(*obs.shape[:3], self.n_actions)
        return all_qs[:-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    # Learning

    def observe(self, rewards: Tensor, mask: Tensor) -> None:
        if self.train.standardise_rewards:
            self.rewards.update(rewards, mask)

    def update(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        inputs = self._along(batch.obs, batch.actions)
        all_qs = self.agent.unroll(inputs).view(batch.available_actions.shape)  # [T + 1, B, n, A]
        chosen_action_qs = all_qs[:-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        q_tot = self.mixer(chosen_action_qs, batch.state[:-1])

        mask, terminated, reward = batch.mask, batch.terminated, batch.reward
        if self.train.standardise_rewards:
            reward = self.rewards.standardise(reward)
        if self.mixer.per_agent:
            mask, terminated, reward = (x.unsqueeze(-1).expand_as(q_tot) for x in (mask, terminated, reward))
        with torch.no_grad():
            target_max_qs = self._target_max_qs(inputs, all_qs.detach(), batch.available_actions)
            next_value = self.target_mixer(target_max_qs, batch.state[1:])
            if self.config.targets == "n_step":
                target = n_step(reward, next_value, terminated, mask, self.train.gamma, self.config.n_step)
            else:
                target = td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

        weight = mask.to(q_tot.dtype)
        count = weight.sum()
        error = (q_tot - target) * weight
        loss = error.square().sum() / count
        self.online.gradient.zero_()
        loss.backward()
        norm = self.online.clip_(self.train.grad_norm_clip)
        self.optimiser.step()
        self.updates += 1
        self._update_target()
        with torch.no_grad():
            mean_q = (q_tot * weight).sum() / count
        return {"loss": loss.detach(), "grad_norm": norm, "q_tot": mean_q}

    def _target_max_qs(self, inputs: Tensor, online_qs: Tensor, available_actions: Tensor) -> Tensor:
        """[T, B, n]: the target network's value of the best available action in every state but the first."""
        target_qs = self.target_agent.unroll(inputs).view(available_actions.shape)[1:]
        judge = online_qs[1:] if self.config.double_q else target_qs
        best = judge.masked_fill(~available_actions[1:], -torch.inf).argmax(-1, keepdim=True)
        return target_qs.gather(-1, best).squeeze(-1)

    def _update_target(self) -> None:
        if self.config.target_update == "soft":
            self.target.values.data.lerp_(self.online.values.data, self.config.target_tau)
        elif self.updates % self.config.target_period == 0:
            self.target.values.data.copy_(self.online.values.data)

    # Keeping

    def state_dict(self) -> dict[str, Any]:
        return {
            "online": self.online.values.data,
            "target": self.target.values.data,
            "optimiser": self.optimiser.state_dict(),
            "rewards": self.rewards.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.online.values.data.copy_(saved["online"])
        self.target.values.data.copy_(saved["target"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.rewards.load_state_dict(saved["rewards"])
        self.updates = saved["updates"]

    def policy_state_dict(self) -> dict[str, Tensor]:
        mixer = {f"{_MIXER}{name}": value.detach().clone() for name, value in self.mixer.named_parameters()}
        return {name: value.clone() for name, value in self.agent.state_dict().items()} | mixer

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.agent.load_state_dict({name: value for name, value in saved.items() if not name.startswith(_MIXER)})
        with torch.no_grad():
            for name, value in self.mixer.named_parameters():
                value.copy_(saved.get(f"{_MIXER}{name}", value))

    def parameter_counts(self) -> dict[str, int]:
        parts = {"agent": self.agent, "mixer": self.mixer}
        return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


def _optimiser(train: Train, parameters: FlatParameters) -> torch.optim.Optimizer:
    if train.optimiser == "adam":
        return torch.optim.Adam([parameters.values], lr=train.learning_rate, fused=True)
    return torch.optim.RMSprop([parameters.values], lr=train.learning_rate, alpha=0.99, eps=1e-5)


def make(run: Run, env: TeamEnv, mixer: Mixer) -> QLearning:
    assert isinstance(run.algorithm, Config)
    return QLearning(run.algorithm, run.train, env, mixer)
