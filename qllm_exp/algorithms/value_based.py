"""Base class of algorithms whose agents have individual Qs that a mixer combines, and act epsilon-greedily on them.

    loss = mean over the steps of episodes [(Q_tot(s_t, a_t) - y_t)^2], plus what the mixer adds (mixers/base.py)

A subclass says which networks the TD targets y_t bootstrap from, and which episodes a gradient step learns from.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.algorithms.agent_inputs import AgentInputs
from qllm_exp.algorithms.base import Algorithm, EpisodeBatch, linear_schedule
from qllm_exp.algorithms.flat_parameters import FlatParameters, make_optimiser
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.algorithms.targets import td_lambda
from qllm_exp.config import schema
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer, greedy_actions, mixing_loss
from qllm_exp.networks.agents import TeamNetwork
from qllm_exp.networks.packing import Packing

_MIXER_PREFIX = "mixer."  # of the names of the mixer's parameters in a policy


@dataclass
class ValueBasedConfig(schema.AlgorithmConfig):
    """Options shared by all algorithms that learn individual Qs and explore by epsilon."""

    td_lambda: float = schema.number(0.6, 0, 1)
    epsilon_start: float = schema.number(1.0, 0, 1)
    epsilon_end: float = schema.number(0.05, 0, 1)
    epsilon_steps: int = schema.number(200_000, 1)
    epsilon_evaluation: float = schema.number(0.0, 0, 1)


class QValues(NamedTuple):
    """The agents' Qs along the episodes of a batch, including the state after the last step.

    After the end of an episode the values are undefined: use the mask.

    Attributes:
        online: Qs of the online agents, [T + 1, B, n, A], differentiable.
        target: Qs that the targets bootstrap from, [T + 1, B, n, A], without gradient.
        best: Available actions that the targets treat as best, [T + 1, B, n] int64.
    """

    online: Tensor
    target: Tensor
    best: Tensor


class AuxiliaryUpdate(NamedTuple):
    """Shaped reward and auxiliary loss of a subclass.

    Attributes:
        reward: Reward that Q_tot learns from, [T, B].
        loss: Scalar that is added to the loss of Q_tot; None if there is none.
        metrics: Metrics to log.
    """

    reward: Tensor
    loss: Tensor | None
    metrics: dict[str, Tensor]


class ValueBased(Algorithm):
    """Agents, mixer and one optimiser.

    A mixer with an `unrestricted` mixer gets a second set of agents, `central`, whose Qs the unrestricted mixer mixes. They do
    not act.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any mixer; it is moved to the environment's device.
        layer_norm: Whether the agents' networks have layer normalisation.
    """

    mixer: Mixer

    def __init__(
        self, config: ValueBasedConfig, train: TrainConfig, env: TeamEnv, mixer: Mixer, layer_norm: bool = False
    ) -> None:
        self.config, self.train = config, train
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.inputs = AgentInputs(config, env)
        sizes = (env.n_agents, self.inputs.size, env.n_actions)
        self.agents = TeamNetwork(*sizes, train, layer_norm).to(env.device)
        self.mixer = mixer.to(env.device)
        self.central: TeamNetwork | None = None
        if mixer.unrestricted is not None:
            self.central = TeamNetwork(*sizes, train, layer_norm).to(env.device)
        online_modules = (self.agents, self.mixer, self.central)
        self.online = FlatParameters(module for module in online_modules if module is not None)
        self.optimiser = make_optimiser(train, self.online)
        self.rewards = RunningMoments(env.device)

    # Acting

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor | None]:
        """Initial hidden states [N, n, H] and encoded last actions [N, n, A] or None."""
        return self.agents.initial_hidden(num_envs, self.device), self.inputs.initial_last_action(num_envs)

    @torch.no_grad()
    def act(
        self, obs: Tensor, available_actions: Tensor, memory: Any, env_step: int | None, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Choose a joint action epsilon-greedily; see `Algorithm.act`."""
        hidden, last_action = memory
        q, hidden = self.agents.step(self.inputs.step_inputs(obs, last_action), hidden)
        actions = greedy_actions(q, available_actions)
        epsilon = self.config.epsilon_evaluation if env_step is None else self._epsilon(env_step)
        if epsilon > 0:
            # Column 0 decides whether to explore. The largest of the others selects uniformly among the available actions.
            uniform = torch.rand(*actions.shape, self.n_actions + 1, generator=generator, device=self.device)
            random_actions = torch.where(available_actions, uniform[..., 1:], -1.0).argmax(-1)
            actions = torch.where(uniform[..., 0] < epsilon, random_actions, actions)
        return actions, (hidden, self.inputs.encode_last_action(actions, obs))

    def _epsilon(self, env_step: int) -> float:
        c = self.config
        return linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, env_step)

    def exploration(self, env_step: int) -> dict[str, float]:
        """Current epsilon."""
        return {"epsilon": self._epsilon(env_step)}

    @torch.no_grad()
    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Individual Qs [T, B, n] of the actions taken; see `Algorithm.action_qs`."""
        all_qs = self.agents.unroll(self.inputs.sequence_inputs(obs, actions))
        return all_qs[:-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    # Learning

    def observe(self, rewards: Tensor, mask: Tensor) -> None:
        """Update the moments of the rewards [T, N], if rewards are standardised."""
        if self.train.standardise_rewards:
            self.rewards.update(rewards, mask)

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step on a batch and return metrics to log."""
        steps, observations = batch.packed_steps(), batch.packed_observations()
        inputs = observations.pack(self.inputs.sequence_inputs(batch.obs, batch.actions))
        values = self.q_values(batch, inputs, observations)
        available = steps.pack(batch.available_actions[:-1])
        joint = JointAction(steps.pack(values.online[:-1]), available, steps.pack(batch.actions))
        state = steps.pack(batch.state[:-1])
        q_tot = self.mixer.q_tot(joint, state)
        reward = self.rewards.standardise(batch.reward) if self.train.standardise_rewards else batch.reward
        auxiliary = self.auxiliary_loss(batch, values, reward)
        next_value = self._next_value(batch, inputs, values, steps, observations)
        target = steps.pack(self.returns(batch, auxiliary.reward, next_value))
        weight = expand_agents(steps.pack(batch.mask), q_tot).to(q_tot.dtype)
        central = None
        if self.central is not None:
            central_qs = observations.unpack(self.central.unroll(inputs, observations))
            central = JointAction(steps.pack(central_qs[:-1]), available, joint.actions)
        losses = mixing_loss(self.mixer, joint, central, state, q_tot, target)
        count = weight.sum()
        loss = (losses * weight).sum() / count
        if auxiliary.loss is not None:
            loss = loss + auxiliary.loss
        self.online.gradient.zero_()
        torch.autograd.backward(loss)
        norm = self.online.gradient_step(self.optimiser, self.train.grad_norm_clip)
        with torch.no_grad():
            squared_error = (q_tot - target).square()
            td_error, mean_q = (squared_error * weight).sum() / count, (q_tot * weight).sum() / count
        return {"loss": td_error, "grad_norm": norm, "q_tot": mean_q} | auxiliary.metrics

    def auxiliary_loss(self, batch: EpisodeBatch, values: QValues, reward: Tensor) -> AuxiliaryUpdate:
        """Hook for subclasses: shaped reward and optional auxiliary loss.

        Args:
            batch: The episodes.
            values: The agents' Qs in them.
            reward: Rewards, standardised if configured, [T, B].
        """
        return AuxiliaryUpdate(reward, None, {})

    @abstractmethod
    def q_values(self, batch: EpisodeBatch, inputs: Tensor, observations: Packing) -> QValues:
        """The agents' Qs in the episodes of a batch.

        Args:
            batch: The episodes.
            inputs: Packed inputs of the agents' networks, [1, M, n, I].
            observations: The observations of the episodes.
        """

    @abstractmethod
    def bootstrap_networks(self) -> tuple[Mixer, TeamNetwork | None]:
        """The mixer whose values of the next states the targets bootstrap from, and its central agents if it has any."""

    @torch.no_grad()
    def _next_value(
        self, batch: EpisodeBatch, inputs: Tensor, values: QValues, steps: Packing, observations: Packing
    ) -> Tensor:
        """Values of the next states, by `bootstrap_networks`.

        Args:
            batch: The episodes.
            inputs: Packed inputs of the agents' networks, [1, M, n, I].
            values: The agents' Qs.
            steps: The steps of the episodes.
            observations: The observations of the episodes.

        Returns:
            [T, B], or [T, B, n] of a mixer that is `per_agent`.
        """
        target_qs = values.target
        mixer, central = self.bootstrap_networks()
        if central is not None and mixer.unrestricted is not None:
            target_qs = observations.unpack(central.unroll(inputs, observations))
            mixer = mixer.unrestricted
        next_joint = JointAction(*(steps.pack(x[1:]) for x in (target_qs, batch.available_actions, values.best)))
        return steps.unpack(mixer.q_tot(next_joint, steps.pack(batch.state[1:])))

    def returns(self, batch: EpisodeBatch, reward: Tensor, next_value: Tensor) -> Tensor:
        """TD targets: TD(lambda) returns.

        Args:
            batch: The episodes.
            reward: [T, B] or [T, B, n].
            next_value: Values of the next states, [T, B] or [T, B, n].

        Returns:
            Of the shape of `next_value`.
        """
        reward, terminated, mask = (expand_agents(x, next_value) for x in (reward, batch.terminated, batch.mask))
        return td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and statistics; see `Algorithm.state_dict`."""
        return {
            "online": self.online.values.data,
            "optimiser": self.optimiser.state_dict(),
            "rewards": self.rewards.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.online.values.data.copy_(saved["online"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.rewards.load_state_dict(saved["rewards"])

    def policy_state_dict(self) -> dict[str, Tensor]:
        """Copies of the agents' and the mixer's parameters; see `Algorithm.policy_state_dict`."""
        agents = {name: value.clone() for name, value in self.agents.state_dict().items()}
        mixer = {f"{_MIXER_PREFIX}{name}": value.detach().clone() for name, value in self.mixer.named_parameters()}
        return agents | mixer

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore the result of `policy_state_dict`."""
        agents = {name: value for name, value in saved.items() if not name.startswith(_MIXER_PREFIX)}
        self.agents.load_state_dict(agents)
        with torch.no_grad():
            for name, value in self.mixer.named_parameters():
                value.copy_(saved[f"{_MIXER_PREFIX}{name}"])

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of agents and mixer, and of the central agents if there are any."""
        modules = {"agent": self.agents, "mixer": self.mixer, "central": self.central}
        return {
            name: sum(p.numel() for p in module.parameters()) for name, module in modules.items() if module is not None
        }


def expand_agents(values: Tensor, like: Tensor) -> Tensor:
    """Repeat values [T, B] of the team for each agent if `like` is [T, B, n]; otherwise return them unchanged."""
    return values.unsqueeze(-1).expand_as(like) if like.dim() > values.dim() else values
