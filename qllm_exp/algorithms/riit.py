"""RIIT, a policy with a mixed critic, later called RMC (Hu et al. 2021, arXiv 2102.03479; public code PyMARL2, `riit`).

    critic:     Q_i(o_i, a_i), feed-forward, and Q_tot(s, u) = mixer(Q_1, ..., Q_n, s)
    latest:     minimise mean [(Q_tot(s_t, u_t) - y_t)^2], y_t a TD(lambda) return of Q_tot^- with the actions that were taken
    replay:     the same with y_t = r_t + gamma Q_tot^-(s_{t+1}, u_{t+1}), u_{t+1} as stored; the critic alone
    agents:     maximise mean [Q_tot(s, pi_1, ..., pi_n)] + c H / |H|, H the mean entropy of the policies, |H| held fixed

The agents' loss passes the probabilities pi_i to the critic in place of a one-hot action. The result is neither a sample nor an
expectation, but the critic's interpolation between the actions that it has learned. An update has three steps: one of the critic
on replayed episodes, one of the critic on the latest episodes, and one of the agents on the latest episodes.

The default mixer is QMIX. The agents' loss uses the mixer's `forward`, the critic's loss the mixer's own loss. With mixer=none
each agent has its own critic. qfix, qplex and qtran are refused: their Q_i rank actions correctly, but the differences between them
are not meaningful, and the agents' loss climbs these differences and weighs them against the entropy. A team that learned from
them kept acting almost at random.

An update takes 3.3 times as long as an update of Q-learning with QMIX, with as many replayed and latest episodes each
(tests/bench/updates.py), and has 2.7 times its floating-point operations (2,094 against 773 million on lbf), because two of its
three steps are the critic's. It takes far longer with wqmix, whose weights need the critics' values of all actions.

Everything else is as in the public code. Deviations from it:
1. A truncated episode continues with an action that is sampled from the current policy at each update. The public code samples
   it once, at the end of the rollout, and stores it.
2. Learning begins with `batch_episodes` episodes. The public code waits for 128, and its `latest` is the newest of these.
3. The critic's loss is the squared error, not half of it: the public code's clip of its gradient at 10 would be 20 here, while
   that of the agents' gradient is the same. Adam's epsilon is 1e-8; the public code's is 1e-7. The target network is a copy
   every 25 updates (200 episodes of 8 environment copies) whatever the ratio of steps to updates [target_update=soft: soft
   updates].
4. The hypernetworks of the public code's mixer are linear, because its file does not request a second layer [mixer.hypernet=0].
   Here they are those of mixer=qmix; train=paper makes them linear.
5. The agents do not see their last action and have the width of `train` [algorithm.last_action=true train.hidden=64, as in
   train=paper].
6. Evaluation samples from the policy [evaluation=greedy]. Evaluations have 100 episodes every 50,000 steps, those of the public
   code 32 every 10,000.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionValueActorCritic, OnPolicyConfig, masked_mean
from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer, mixing_loss
from qllm_exp.networks.agents import FeedForwardAgent, TeamNetwork


@dataclass
class Config(OnPolicyConfig):
    """Options of `algorithm=riit`; conf/algorithm/riit.yaml explains them."""

    name: str = "riit"
    num_envs: int = schema.number(8, 1, identity=False)
    targets: str = schema.one_of("td_lambda", "n_step")
    td_lambda: float = schema.number(0.6, 0, 1)
    target_update: str = schema.one_of("periodic", "soft")
    target_period: int = schema.number(25, 1)
    entropy: float = schema.number(0.03, 0)
    replay_episodes: int = schema.number(64, 0)
    critic_hidden: int = schema.number(128, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer except those in REFUSES
REFUSES = dict.fromkeys(
    ("qfix", "qplex", "qtran"),
    "its individual Qs rank the actions, but the agents' loss also needs meaningful differences between them",
)
_MIXER_PREFIX, _CRITIC_PREFIX = "mixer.", "critic."  # of parameter names in a policy; the agents' names have no prefix
_MIN_ENTROPY = 1e-6  # nats; lower bound of |H|


class ActionValues(TeamNetwork):
    """Q_i of an agent's inputs and action: a feed-forward network, shared by all agents or separate for each.

    Args:
        n_agents: Number of agents n.
        n_inputs: Inputs I of each agent's critic, without the action.
        n_actions: Actions A of each agent.
        train: The `train` group: width of the network, and whether the agents share its parameters.
    """

    def __init__(self, n_agents: int, n_inputs: int, n_actions: int, train: TrainConfig) -> None:
        super().__init__(n_agents, n_inputs + n_actions, 1, replace(train, network="mlp"))
        self.sizes = [n_inputs, n_actions]

    def q(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Individual Qs of actions.

        Args:
            inputs: [T, B, n, I].
            actions: One-hot actions or probabilities, [T, B, n, A].

        Returns:
            [T, B, n].
        """
        return self.unroll(torch.cat([inputs, actions], -1)).squeeze(-1)

    def q_all(self, inputs: Tensor) -> Tensor:
        """Individual Qs [T, B, n, A] of all actions, from inputs [T, B, n, I]."""
        if len(self.members) == 1:
            return self._network_q_all(self.members[0], inputs)
        qs = [self._network_q_all(network, inputs[:, :, i]) for i, network in enumerate(self.members)]
        return torch.stack(qs, 2)

    def _network_q_all(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Qs [..., A] of all actions by one network, from inputs [..., I]."""
        assert isinstance(network, FeedForwardAgent)
        input_weight, action_weight = torch.split(network.fc_in.weight, self.sizes, 1)
        # The first layer is linear in a one-hot action: each action adds one column of the weight.
        first = F.linear(inputs, input_weight, network.fc_in.bias).unsqueeze(-2) + action_weight.T
        values: Tensor = network.fc_out(F.relu(network.fc_hidden(F.relu(first))))
        return values.squeeze(-1)


class CriticJointAction(JointAction):
    """A joint action with the Qs of a critic, which evaluates the actions that were not taken only if a mixer needs them.

    Args:
        values: The critic.
        inputs: Its inputs, [T, B, n, I].
        available: [T, B, n, A] bool.
        actions: [T, B, n] int64.
    """

    def __init__(self, values: ActionValues, inputs: Tensor, available: Tensor, actions: Tensor) -> None:
        self._values, self._inputs = values, inputs
        # A mixer may first read a value within no_grad and later learn from it, so the mode at construction applies.
        self._grad = torch.is_grad_enabled()
        self.available, self.actions = available, actions

    @cached_property
    def all_qs(self) -> Tensor:  # type: ignore[override]  # an attribute of JointAction that is computed on demand here
        """Individual Qs of all actions, [T, B, n, A]."""
        with torch.set_grad_enabled(self._grad):
            return self._values.q_all(self._inputs)

    @cached_property
    def qs(self) -> Tensor:
        """Individual Qs [T, B, n] of the joint action."""
        with torch.set_grad_enabled(self._grad):
            one_hot = F.one_hot(self.actions, self.available.shape[-1]).to(self._inputs.dtype)
            return self._values.q(self._inputs, one_hot)


class MixedCritic(nn.Module):
    """Q_i and the mixer, and for a mixer with an `unrestricted` mixer a second set of Q_i for that one.

    Args:
        mixer: The mixer.
        make_values: Builds the Q_i with their initial parameters.
    """

    def __init__(self, mixer: Mixer, make_values: Callable[[], ActionValues]) -> None:
        super().__init__()
        self.values, self.mixer = make_values(), mixer
        self.central = None if mixer.unrestricted is None else make_values()

    def joint_actions(
        self, inputs: Tensor, available: Tensor, actions: Tensor
    ) -> tuple[CriticJointAction, CriticJointAction | None]:
        """A joint action with the Qs for the mixer, and with those for its unrestricted mixer, if there is one.

        Args:
            inputs: Inputs of the critic, [T, B, n, I].
            available: [T, B, n, A] bool.
            actions: [T, B, n] int64.
        """
        central = None if self.central is None else CriticJointAction(self.central, inputs, available, actions)
        return CriticJointAction(self.values, inputs, available, actions), central

    def bootstrap(self, inputs: Tensor, available: Tensor, actions: Tensor, state: Tensor) -> Tensor:
        """Value of a joint action that targets bootstrap from.

        Args:
            inputs: Inputs of the critic, [T, B, n, I].
            available: [T, B, n, A] bool.
            actions: [T, B, n] int64.
            state: [T, B, state_dim].

        Returns:
            [T, B], or [T, B, n] of a mixer that is `per_agent`.
        """
        joint, central = self.joint_actions(inputs, available, actions)
        if central is not None and self.mixer.unrestricted is not None:
            return self.mixer.unrestricted.q_tot(central, state)
        return self.mixer.q_tot(joint, state)


class Riit(ActionValueActorCritic):
    """Agents, and a critic per agent whose values a mixer combines.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
        mixer: Any accepted mixer; it is moved to the environment's device.
    """

    config: Config
    mixer: Mixer
    critic: MixedCritic
    target_critic: MixedCritic

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        self.mixer = mixer
        super().__init__(config, train, env)

    def build_critic(self, env: TeamEnv) -> MixedCritic:
        """Build the critic, which includes the mixer."""
        size = env.obs_dim
        if self.config.agent_id:
            size += env.n_agents
        train = replace(self.train, hidden=self.config.critic_hidden)
        return MixedCritic(self.mixer, lambda: ActionValues(env.n_agents, size, env.n_actions, train))

    @torch.no_grad()
    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Critic's individual Qs [T, B, n] of the actions taken; see `Algorithm.action_qs`."""
        one_hot = F.one_hot(actions, self.n_actions).to(obs.dtype)
        return self.critic.values.q(self._critic_inputs(obs[:-1]), one_hot)

    def _critic_inputs(self, obs: Tensor) -> Tensor:
        """Inputs of the critic [..., n, I] without the action, from obs [..., n, obs_dim]."""
        return self.inputs.step_inputs(obs, None)

    def update(self, experience: Experience) -> dict[str, Tensor]:
        """Train the critic on replayed episodes, then critic and agents on the latest; return metrics to log."""
        metrics = {}
        if self.config.replay_episodes:
            batch = experience.sample(self.config.replay_episodes)
            with torch.no_grad():
                policy = self._policy(batch)
            metrics["replay_loss"] = self._learn_critic(batch, policy, one_step=True)["value_loss"]
        return self.learn(experience.latest(self.train.batch_episodes)) | metrics

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step of the critic and one of the agents on the latest episodes; return metrics to log."""
        policy = self._policy(batch)
        metrics = self._learn_critic(batch, policy, one_step=False) | self._learn_policy(batch, policy)
        self.update_targets()
        return metrics

    def _policy(self, batch: EpisodeBatch) -> MaskedCategorical:
        """The agents' policy along the episodes, [T + 1, B, n, A]."""
        observations = batch.packed_observations()
        inputs = observations.pack(self.inputs.sequence_inputs(batch.obs, batch.actions))
        logits = observations.unpack(self.agents.unroll(inputs, observations))
        return MaskedCategorical(logits, batch.available_actions)

    def _learn_critic(self, batch: EpisodeBatch, policy: MaskedCategorical, one_step: bool) -> dict[str, Tensor]:
        """One gradient step of the critic.

        Args:
            batch: The episodes.
            policy: The agents' policy, [T + 1, B, n, A].
            one_step: Whether targets bootstrap after one step.
        """
        steps = batch.packed_steps()
        inputs, actions = self._critic_inputs(batch.obs), self.all_actions(batch, policy)
        tensors = (inputs, batch.available_actions, actions, batch.state)
        with torch.no_grad():
            next_inputs, next_available, next_actions, next_state = (steps.pack(x[1:]) for x in tensors)
            next_value = self.target_critic.bootstrap(next_inputs, next_available, next_actions, next_state)
            target = steps.pack(self.targets(batch, steps.unpack(next_value), one_step))
        packed_inputs, available, taken, state = (steps.pack(x[:-1]) for x in tensors)
        joint, central = self.critic.joint_actions(packed_inputs, available, taken)
        mask = steps.pack(batch.mask)
        q_tot = self.mixer.q_tot(joint, state)
        loss = mixing_loss(self.mixer, joint, central, state, q_tot, target)
        norm = self.update_critic(masked_mean(loss, mask))
        with torch.no_grad():
            value_loss = masked_mean((q_tot - target).square(), mask)
            return {"value_loss": value_loss, "q_tot": masked_mean(q_tot, mask), "critic_grad_norm": norm}

    def _learn_policy(self, batch: EpisodeBatch, policy: MaskedCategorical) -> dict[str, Tensor]:
        """One gradient step of the agents."""
        steps = batch.packed_steps()
        inputs = self._critic_inputs(steps.pack(batch.obs[:-1]))
        qs = self.critic.values.q(inputs, steps.pack(policy.probs[:-1]))
        objective = masked_mean(self.mixer(qs, steps.pack(batch.state[:-1])), steps.pack(batch.mask))
        entropy = masked_mean(policy.entropy[:-1], batch.mask)
        entropy_bonus = self.config.entropy * entropy / entropy.detach().clamp(min=_MIN_ENTROPY)
        norm = self.update_agents(-objective - entropy_bonus)
        return {"policy_loss": -objective.detach(), "entropy": entropy.detach(), "grad_norm": norm}

    def policy_state_dict(self) -> dict[str, Tensor]:
        """Copies of the parameters of the agents, the mixer and the critic, which evaluates the agents' actions."""
        values = {name: value.detach().clone() for name, value in self._value_parameters().items()}
        return super().policy_state_dict() | values

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore the result of `policy_state_dict`."""
        prefixes = (_MIXER_PREFIX, _CRITIC_PREFIX)
        agents = {name: value for name, value in saved.items() if not name.startswith(prefixes)}
        super().load_policy_state_dict(agents)
        with torch.no_grad():
            for name, value in self._value_parameters().items():
                value.copy_(saved[name])

    def _value_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the mixer and of the Q_i, by their names in a policy."""
        mixer = {f"{_MIXER_PREFIX}{name}": value for name, value in self.mixer.named_parameters()}
        values = {f"{_CRITIC_PREFIX}{name}": value for name, value in self.critic.values.named_parameters()}
        return mixer | values

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of agents, critic and mixer, and of the central critic if there is one."""
        modules = {
            "agent": self.agents,
            "critic": self.critic.values,
            "mixer": self.mixer,
            "central": self.critic.central,
        }
        return {
            name: sum(p.numel() for p in module.parameters()) for name, module in modules.items() if module is not None
        }


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Riit:
    """Build the algorithm of `algorithm=riit`."""
    assert isinstance(run.algorithm, Config)
    return Riit(run.algorithm, run.train, env, mixer)
