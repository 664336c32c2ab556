"""RIIT, a policy with a mixed critic, later called RMC (Hu et al. 2021, arXiv 2102.03479; public code PyMARL2, `riit`).

    critic:     Q_i(o_i, a_i), feed-forward, and Q_tot(s, u) = mixer(Q_1, ..., Q_n, s)
    latest:     minimise mean [(Q_tot(s_t, u_t) - y_t)^2], y_t a TD(lambda) return of Q_tot^- with the actions that were taken
    replay:     the same with y_t = r_t + gamma Q_tot^-(s_{t+1}, u_{t+1}), u_{t+1} as stored; the critic alone
    agents:     maximise mean [Q_tot(s, pi_1, ..., pi_n)] + c H / |H|, H the mean entropy of the policies, |H| held fixed

The agents' loss puts the probabilities pi_i where the critic has a one-hot action: neither a sample nor an expectation, but the
critic between the actions that it has learnt of. An update is a step of the critic on replay, one on the latest episodes and
one of the agents on these. The mixer is QMIX's unless another is asked for; the agents' loss goes through its `forward`, the
critic's is the mixer's own. With mixer=none each agent has a critic of its own. qplex and qtran are refused: what is best by
their Q_i is right, but how much better is not, and that is what the agents' loss climbs and weighs against the entropy (a team
that learnt by them kept playing nearly at random).

An update takes three times as long as one of Q-learning with QMIX on as many of the latest episodes (tests/bench/updates.py), as
two of its three steps are the critic's, and far longer with wqmix, whose weights ask the critics for every action.

What is not said here is as in the public code. Where it deviates:
1. An episode that was truncated goes on with an action drawn from the policy, where the public code has no action at all.
2. Learning begins with `batch_episodes` episodes, where the public code waits for 128; there `latest` is the newest of these.
3. The critic's loss is the squared error, not half of it, and the target network is a copy every 25 updates (200 episodes of 8
   copies of the environment) whatever the ratio of steps to updates [target_update=soft: it follows softly].
4. Of the public code's own mixer the hypernetworks are linear, as its file does not ask for a second layer [mixer.hypernet=0].
   Here they are those of mixer=qmix; train=paper makes them linear.
5. The agents see no last action and are as wide as `train` says [algorithm.last_action=true train.hidden=64, as train=paper has].
6. Evaluation draws from the policy [evaluation=greedy].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionCritic, OnPolicyConfig, mean
from qllm_exp.algorithms.base import EpisodeBatch, Experience
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import JointAction, Mixer, mixing_loss
from qllm_exp.networks.agents import FeedForwardAgent, TeamNetwork


@dataclass
class Config(OnPolicyConfig):
    name: str = "riit"
    num_envs: int = schema.number(8, 1, identity=False)
    targets: str = schema.one_of("td_lambda", "n_step")
    td_lambda: float = schema.number(0.6, 0, 1)
    target_update: str = schema.one_of("periodic", "soft")
    target_period: int = schema.number(25, 1)
    entropy: float = schema.number(0.03, 0)
    replay_episodes: int = schema.number(64, 0)
    critic_hidden: int = schema.number(128, 1)


ACCEPTS: tuple[str, ...] | None = None  # every mixer, but for
REFUSES = dict.fromkeys(
    ("qplex", "qtran"),
    "its individual Qs say which action is best, not by how much, and the agents' loss climbs these differences",
)
_PARTS = ("mixer.", "critic.")  # how the names of parameters begin that are not the agents', among those of a policy
_NO_ENTROPY = 1e-6  # nats; what |H| is at least


class ActionValues(TeamNetwork):
    """Q_i of what an agent sees and does: Linear and ReLU, twice, then Linear, for all agents or one each.

    Args:
        n_inputs: what an agent's critic sees, I. train: says how wide it is, and whether the agents share it.
    """

    def __init__(self, n_agents: int, n_inputs: int, n_actions: int, train: TrainConfig) -> None:
        super().__init__(n_agents, n_inputs + n_actions, 1, replace(train, network="mlp"))
        self.sizes = [n_inputs, n_actions]

    def of(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """[T, B, n] of inputs [T, B, n, I] and of actions [T, B, n, A], one-hot or probabilities."""
        return self.unroll(torch.cat([inputs, actions], -1)).squeeze(-1)

    def of_all(self, inputs: Tensor) -> Tensor:
        """[T, B, n, A] of inputs [T, B, n, I] and each action."""
        if len(self.members) == 1:
            return self._of_all(self.members[0], inputs)
        return torch.stack([self._of_all(one, inputs[:, :, i]) for i, one in enumerate(self.members)], 2)

    def _of_all(self, one: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(one, FeedForwardAgent)
        of_inputs, of_action = torch.split(one.fc_in.weight, self.sizes, 1)
        first = F.linear(inputs, of_inputs, one.fc_in.bias).unsqueeze(-2) + of_action.T  # linear in a one-hot action
        values: Tensor = one.fc_out(F.relu(one.fc_hidden(F.relu(first))))
        return values.squeeze(-1)


class CriticJointAction(JointAction):
    """A joint action, and what a critic thinks of it; the actions that were not taken are judged when a mixer asks for them.

    Args:
        values: the critic. inputs: [T, B, n, I] what it sees. available: [T, B, n, A] bool. actions: [T, B, n] int64.
    """

    def __init__(self, values: ActionValues, inputs: Tensor, available: Tensor, actions: Tensor) -> None:
        self._values, self._inputs = values, inputs
        self._grad = torch.is_grad_enabled()  # a mixer may ask within no_grad for what it learns from later
        self.available, self.actions = available, actions

    @cached_property
    def all_qs(self) -> Tensor:  # type: ignore[override]  # what is there in a JointAction is made here
        with torch.set_grad_enabled(self._grad):
            return self._values.of_all(self._inputs)

    @cached_property
    def qs(self) -> Tensor:
        with torch.set_grad_enabled(self._grad):
            taken = F.one_hot(self.actions, self.available.shape[-1]).to(self._inputs.dtype)
            return self._values.of(self._inputs, taken)


class MixedCritic(nn.Module):
    """Q_i, the mixer, and for a mixer with an `unrestricted` one the Q_i that it mixes.

    Args:
        make_values: makes the Q_i with their first parameters.
    """

    def __init__(self, mixer: Mixer, make_values: Callable[[], ActionValues]) -> None:
        super().__init__()
        self.values, self.mixer = make_values(), mixer
        self.central = None if mixer.unrestricted is None else make_values()

    def joints(
        self, inputs: Tensor, available: Tensor, actions: Tensor
    ) -> tuple[CriticJointAction, CriticJointAction | None]:
        """A joint action as the mixer judges it, and as its unrestricted one does; shapes as `CriticJointAction`'s."""
        central = None if self.central is None else CriticJointAction(self.central, inputs, available, actions)
        return CriticJointAction(self.values, inputs, available, actions), central

    def bootstrap(self, inputs: Tensor, available: Tensor, actions: Tensor, state: Tensor) -> Tensor:
        """What targets say of a joint action in a state [T, B, S]: [T, B], or [T, B, n] of a mixer that is `per_agent`."""
        joint, central = self.joints(inputs, available, actions)
        if central is not None and self.mixer.unrestricted is not None:
            return self.mixer.unrestricted.value(central, state)
        return self.mixer.value(joint, state)


class Riit(ActionCritic):
    """Agents, and a critic of each whose values a mixer puts together.

    Args:
        config, train, env: as `AgentsAndCritic`'s. mixer: any mixer; it is moved to the environment's device.
    """

    config: Config
    mixer: Mixer
    critic: MixedCritic
    target_critic: MixedCritic

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv, mixer: Mixer) -> None:
        self.mixer = mixer
        super().__init__(config, train, env)

    def build_critic(self, env: TeamEnv) -> MixedCritic:
        size = env.obs_dim + env.n_agents * self.config.agent_id
        train = replace(self.train, hidden=self.config.critic_hidden)
        return MixedCritic(self.mixer, lambda: ActionValues(env.n_agents, size, env.n_actions, train))

    @torch.no_grad()
    def action_qs(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.critic.values.of(self._seen(obs[:-1]), F.one_hot(actions, self.n_actions).to(obs.dtype))

    def _seen(self, obs: Tensor) -> Tensor:
        """What the critic sees of each agent [..., n, I], besides what it does."""
        return self.inputs.at(obs, None)

    def update(self, experience: Experience) -> dict[str, Tensor]:
        figures = {}
        if self.config.replay_episodes:
            batch = experience.sample(self.config.replay_episodes)
            with torch.no_grad():
                policy = self._policy(batch)
            figures["replay_loss"] = self._learn_values(batch, policy, one_step=True)["value_loss"]
        return self.learn(experience.latest(self.train.batch_episodes)) | figures

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One gradient step of the critic and one of the agents, on the latest episodes."""
        policy = self._policy(batch)
        figures = self._learn_values(batch, policy, one_step=False) | self._learn_policy(batch, policy)
        self.update_target()
        return figures

    def _policy(self, batch: EpisodeBatch) -> MaskedCategorical:
        """[T + 1, B, n, A]"""
        return MaskedCategorical(
            self.agents.unroll(self.inputs.along(batch.obs, batch.actions)), batch.available_actions
        )

    def _learn_values(self, batch: EpisodeBatch, policy: MaskedCategorical, one_step: bool) -> dict[str, Tensor]:
        seen, actions = self._seen(batch.obs), self.all_actions(batch, policy)
        with torch.no_grad():
            beyond = self.target_critic.bootstrap(seen[1:], batch.available_actions[1:], actions[1:], batch.state[1:])
            target = self.targets(batch, beyond, one_step)
        now, central = self.critic.joints(seen[:-1], batch.available_actions[:-1], actions[:-1])
        q_tot = self.mixer.value(now, batch.state[:-1])
        loss = mixing_loss(self.mixer, now, central, batch.state[:-1], q_tot, target)
        norm = self.improve_critic(mean(loss, batch.mask))
        with torch.no_grad():
            error = mean((q_tot - target).square(), batch.mask)
            return {"value_loss": error, "q_tot": mean(q_tot, batch.mask), "critic_grad_norm": norm}

    def _learn_policy(self, batch: EpisodeBatch, policy: MaskedCategorical) -> dict[str, Tensor]:
        qs = self.critic.values.of(self._seen(batch.obs[:-1]), policy.probs[:-1])
        gain = mean(self.mixer(qs, batch.state[:-1]), batch.mask)
        entropy = mean(policy.entropy[:-1], batch.mask)
        norm = self.improve_agents(-gain - self.config.entropy * entropy / entropy.detach().clamp(min=_NO_ENTROPY))
        return {"policy_loss": -gain.detach(), "entropy": entropy.detach(), "grad_norm": norm}

    def policy_state_dict(self) -> dict[str, Tensor]:
        """The critic's parameters too, which say what the agents' actions are worth."""
        return super().policy_state_dict() | {name: value.detach().clone() for name, value in self._judges().items()}

    def load_policy_state_dict(self, saved: dict[str, Tensor]) -> None:
        super().load_policy_state_dict({name: value for name, value in saved.items() if not name.startswith(_PARTS)})
        with torch.no_grad():
            for name, value in self._judges().items():
                value.copy_(saved[name])

    def _judges(self) -> dict[str, nn.Parameter]:
        """The mixer's and the critic's parameters."""
        pairs = zip(_PARTS, (self.mixer, self.critic.values), strict=True)
        return {f"{part}{name}": value for part, of in pairs for name, value in of.named_parameters()}

    def parameter_counts(self) -> dict[str, int]:
        parts = {
            "agent": self.agents,
            "critic": self.critic.values,
            "mixer": self.mixer,
            "central": self.critic.central,
        }
        return {name: sum(p.numel() for p in one.parameters()) for name, one in parts.items() if one is not None}


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Riit:
    assert isinstance(run.algorithm, Config)
    return Riit(run.algorithm, run.train, env, mixer)
