"""Deep recurrent Q-learning (Hausknecht and Stone 2015, arXiv 1507.06527) with a mixer.

IQL, VDN, QMIX and QLLM are this algorithm with different mixers.

    y_t  = r_t + gamma (1 - terminated_t) Q_tot^-(s_{t+1}, argmax_a Q(s_{t+1}, a))      or its n-step or TD(lambda) form
    loss = mean over the steps of episodes [(Q_tot(s_t, a_t) - y_t)^2]

The argmax is by the online network (double Q-learning, van Hasselt et al. 2016, arXiv 1509.06461), or by the target network
[double_q=false]. A mixer may add to the loss (mixers/base.py). Agents act epsilon-greedily among the available actions.

Deviations from the publications:
1. Whole episodes are replayed, and each agent's memory starts at the first step. The publication also replays from random steps.
2. An episode that was truncated by a time limit bootstraps from its last state; in QLLM's and EPyMARL's public code it counts
   as terminated.
3. `train=fair` is one setting for all mixers: TD(0.6) targets, soft target updates, standardised rewards. `train=paper` has the
   settings of public code: QLLM's for tfcaf and qmix, EPyMARL's for none (IQL), and PyMARL's for all others (its authors' VDN
   and QTRAN; the authors of Qatten, QPLEX and Weighted QMIX keep them).

Where `train=paper` differs from the public codes whose settings it has:
1. The moments by which rewards are standardised are those of all rewards so far. EPyMARL and QLLM update them from each replayed
   batch, where a reward counts once per replay and padding counts as a reward of 0.
2. Targets on the tasks other than football have one step: QLLM's files set td_lambda = 0.6, which their learner does not read.
3. On football, QLLM's loss is half the squared error, so its gradient clip of 10 is `train.grad_norm_clip=20` here. Its mixers
   see the observations of all agents in a row, n x 115 columns; here they see the state of the environment's layout.
4. The files for StarCraft (PyMARL's) have 2.05 million steps, and 32 evaluation episodes every 10,000 steps; here runs have 2
   million steps, and 100 episodes every 50,000.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qllm_exp.algorithms.agent_inputs import AgentInputs
from qllm_exp.algorithms.base import Algorithm, EpisodeBatch, Experience, linear_schedule
from qllm_exp.algorithms.flat_parameters import FlatParameters, TargetNetworkConfig, make_optimiser, update_target
from qllm_exp.algorithms.running_moments import RunningMoments
from qllm_exp.algorithms.targets import n_step, td_lambda
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer, greedy_actions, mixing_loss
from qllm_exp.networks.agents import TeamNetwork
from qllm_exp.networks.packing import Packing


@dataclass
class Config(TargetNetworkConfig):
    """Options of `algorithm=q_learning`; conf/algorithm/q_learning.yaml explains them."""

    name: str = "q_learning"
    double_q: bool = True
    targets: str = schema.one_of("td_lambda", "n_step")
    n_step: int = schema.number(1, 1)
    td_lambda: float = schema.number(0.6, 0, 1)
    epsilon_start: float = schema.number(1.0, 0, 1)
    epsilon_end: float = schema.number(0.05, 0, 1)
    epsilon_steps: int = schema.number(200_000, 1)
    epsilon_evaluation: float = schema.number(0.0, 0, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer
_MIXER_PREFIX = "mixer."  # of the names of the mixer's parameters in a policy


class QValues(NamedTuple):
    """The agents' Qs along the episodes of a batch, including the state after the last step.

    After the end of an episode the values are undefined: use the mask.

    Attributes:
        online: Qs of the online agents, [T + 1, B, n, A], differentiable.
        target: Qs of the target agents, [T + 1, B, n, A].
        best: Available actions that the targets treat as best, [T + 1, B, n] int64.
    """

    online: Tensor
    target: Tensor
    best: Tensor


class AuxiliaryUpdate(NamedTuple):
    """Shaped reward and auxiliary loss of a subclass of QLearning.

    Attributes:
        reward: Reward that Q_tot learns from, [T, B].
        loss: Scalar that is added to the loss of Q_tot; None if there is none.
        metrics: Metrics to log.
    """

    reward: Tensor
    loss: Tensor | None
    metrics: dict[str, Tensor]


class QLearning(Algorithm):
    """Agents, mixer, their target copies and one optimiser.

    A mixer with an `unrestricted` mixer gets a second set of agents, `central`, whose Qs the unrestricted mixer mixes. They do
    not act.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any mixer; it is moved to the environment's device.
    """

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        self.config, self.train = config, train
        self.n_agents, self.n_actions, self.device = env.n_agents, env.n_actions, env.device
        self.inputs = AgentInputs(config, env)
        self.agents = TeamNetwork(env.n_agents, self.inputs.size, env.n_actions, train).to(env.device)
        self.mixer: Mixer = mixer.to(env.device)
        self.central: TeamNetwork | None = None
        if mixer.unrestricted is not None:
            self.central = TeamNetwork(env.n_agents, self.inputs.size, env.n_actions, train).to(env.device)
        online_modules = (self.agents, self.mixer, self.central)
        self.target_agents, self.target_mixer, self.target_central = copy.deepcopy(online_modules)
        target_modules = (self.target_agents, self.target_mixer, self.target_central)
        self.online = FlatParameters(module for module in online_modules if module is not None)
        self.target = FlatParameters(module for module in target_modules if module is not None)
        self.target.values.requires_grad_(False)
        self.optimiser = make_optimiser(train, self.online)
        self.rewards = RunningMoments(env.device)
        self.updates = 0

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

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Learn from replayed episodes and return metrics to log."""
        return self.learn(experience.sample(self.train.batch_episodes))

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step on a batch and return metrics to log."""
        steps, observations = batch.packed_steps(), batch.packed_observations()
        inputs = observations.pack(self.inputs.sequence_inputs(batch.obs, batch.actions))
        values = self._q_values(batch, inputs, observations)
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
        self.updates += 1
        update_target(self.config, self.updates, self.target, self.online)
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

    def _q_values(self, batch: EpisodeBatch, inputs: Tensor, observations: Packing) -> QValues:
        online = observations.unpack(self.agents.unroll(inputs, observations))
        with torch.no_grad():
            target = observations.unpack(self.target_agents.unroll(inputs, observations))
            best = greedy_actions(online if self.config.double_q else target, batch.available_actions)
        return QValues(online, target, best)

    @torch.no_grad()
    def _next_value(
        self, batch: EpisodeBatch, inputs: Tensor, values: QValues, steps: Packing, observations: Packing
    ) -> Tensor:
        """Target networks' values of the next states.

        Args:
            batch: The episodes.
            inputs: Packed inputs of the agents' networks, [1, M, n, I].
            values: The agents' Qs.
            steps: The steps of the episodes.
            observations: The observations of the episodes.

        Returns:
            [T, B], or [T, B, n] of a mixer that is `per_agent`.
        """
        target_qs, mixer = values.target, self.target_mixer
        if self.target_central is not None and mixer.unrestricted is not None:
            target_qs = observations.unpack(self.target_central.unroll(inputs, observations))
            mixer = mixer.unrestricted
        next_joint = JointAction(*(steps.pack(x[1:]) for x in (target_qs, batch.available_actions, values.best)))
        return steps.unpack(mixer.q_tot(next_joint, steps.pack(batch.state[1:])))

    def returns(self, batch: EpisodeBatch, reward: Tensor, next_value: Tensor) -> Tensor:
        """n-step or TD(lambda) returns, as configured.

        Args:
            batch: The episodes.
            reward: [T, B] or [T, B, n].
            next_value: Values of the next states, [T, B] or [T, B, n].

        Returns:
            Of the shape of `next_value`.
        """
        reward, terminated, mask = (expand_agents(x, next_value) for x in (reward, batch.terminated, batch.mask))
        if self.config.targets == "n_step":
            return n_step(reward, next_value, terminated, mask, self.train.gamma, self.config.n_step)
        return td_lambda(reward, next_value, terminated, mask, self.train.gamma, self.config.td_lambda)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and statistics; see `Algorithm.state_dict`."""
        return {
            "online": self.online.values.data,
            "target": self.target.values.data,
            "optimiser": self.optimiser.state_dict(),
            "rewards": self.rewards.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.online.values.data.copy_(saved["online"])
        self.target.values.data.copy_(saved["target"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.rewards.load_state_dict(saved["rewards"])
        self.updates = saved["updates"]

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


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> QLearning:
    """Build the algorithm of `algorithm=q_learning`."""
    assert isinstance(run.algorithm, Config)
    return QLearning(run.algorithm, run.train, env, mixer)
