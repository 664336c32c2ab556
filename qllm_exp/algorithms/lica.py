"""LICA, learning implicit credit assignment (Zhou et al. 2020, arXiv 2007.02529).

    critic:     Q(s, p_1 .. p_n) = w2(s)^T relu(W1(s)^T (p_1 .. p_n) + b1(s)) + b2(s), all weights of either sign
    learns:     minimise mean [(Q(s_t, u_t) - y_t)^2], u_t the actions taken, one-hot, y_t a TD(lambda) return of target Q
    agents:     maximise mean Q(s, pi_1 .. pi_n) + entropy * H / |H|, end to end, pi_i the probabilities of the available actions

H is the mean entropy of the policies in the batch, and |H| is its value held fixed: the gradient of the entropy is divided by
the entropy. W1 and w2 come from hypernetworks with one hidden layer. b1 is linear in the state; b2 has one hidden layer.

Deviations from the authors' code (github.com/mzho7212/LICA), whose settings train=paper has:
1. A batch has 10 episodes [num_envs=32], and the target critic follows softly [target_update=periodic]. With 32 episodes of 50
   steps there would be 1250 updates in two million steps, and a copy of the critic every 200 of them.
2. Agents and critic have the same learning rate [agents_rate=5]. The weight of the entropy is 0.5 [entropy=0.06], and rewards
   are standardised. At the published weight the policies become nearly deterministic before the critic has learned (see below).
3. The agents do not see their last action [last_action=true].
4. Evaluation samples from the policy [evaluation=greedy].
5. The hidden layer of the hypernetwork of W1 has width 64, as in PyMARL2; the authors use embed * n * A.
6. With train=paper the weight of the entropy is 0.06, which a comment in the authors' file gives for all maps but one; the value
   in the file is 0.11. Runs have 2 million steps, and 100 evaluation episodes every 50,000 steps; the authors' have 65.6 million
   steps of StarCraft, and 32 episodes every 320,000 steps.

The publication divides the entropy's gradient per agent. The authors' code, like this module, divides it by the batch mean.

At the published weight the policies' entropy on lbf 8x8-2p-2f-coop-2s (env.mask_ineffective=true) was 0.2 nats after 50k steps,
and the return 0.07 after 300k (one seed; 0.24 with the default). The default keeps a policy uncertain where one action is
right. On the matrix games the most probable actions reach the best return in most seeds; the sampled policy loses a fifth to a
third of it.

An update takes 2.1 times (lbf) to 2.4 times (mpe) as long as an update of Q-learning with QMIX on the same number of episodes,
and has 1.8 to 2.3 times its floating-point operations (1,347 against 585 million on mpe, 1,410 against 773 million on lbf).
W1 has n * A * embed elements, which are computed from the state three times: for the targets, the critic and the agents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionValueActorCritic, OnPolicyActorCritic, OnPolicyConfig, masked_mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import make_optimiser
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(OnPolicyConfig):
    """Options of `algorithm=lica`; conf/algorithm/lica.yaml explains them."""

    name: str = "lica"
    targets: str = schema.one_of("td_lambda", "n_step")
    td_lambda: float = schema.number(0.8, 0, 1)
    entropy: float = schema.number(0.5, 0)
    agents_rate: float = schema.number(1.0, 0)
    embed: int = schema.number(64, 1)
    hypernet: int = schema.number(64, 1)


ACCEPTS = ("none",)

_MIN_ENTROPY = 1e-6  # nats; lower bound of the entropy that its gradient is divided by


class MixingCritic(nn.Module):
    """Q of a joint action, or of the agents' action probabilities, with state-dependent weights.

    Args:
        n_inputs: Size of a joint action, n * A.
        state_dim: Size of the global state.
        embed: Width E of the mixing network.
        hypernet: Hidden width of the hypernetworks of W1 and w2.
    """

    def __init__(self, n_inputs: int, state_dim: int, embed: int, hypernet: int) -> None:
        super().__init__()
        self.shape = (n_inputs, embed)
        # All layers that read the state are one product: hidden layers of W1 and w2, b1, hidden layer of b2.
        self.parts = (hypernet, hypernet, embed, embed)
        self.from_state = nn.Linear(state_dim, sum(self.parts))
        self.weights1 = nn.Linear(hypernet, n_inputs * embed)
        self.weights2 = nn.Linear(hypernet, embed)
        self.bias2 = nn.Linear(embed, 1)

    def forward(self, probs: Tensor, state: Tensor) -> Tensor:
        """Q of a joint action.

        Args:
            probs: Action probabilities, or one-hot actions, [..., n, A].
            state: [..., state_dim].

        Returns:
            [...].
        """
        w1, w2, b1, b2 = self.from_state(state).split(self.parts, -1)
        w1 = self.weights1(F.relu(w1)).unflatten(-1, self.shape)
        hidden = F.relu((probs.flatten(-2).unsqueeze(-2) @ w1).squeeze(-2) + b1)
        q: Tensor = torch.linalg.vecdot(hidden, self.weights2(F.relu(w2))) + self.bias2(F.relu(b2)).squeeze(-1)
        return q


class Lica(ActionValueActorCritic, OnPolicyActorCritic):
    """Agents, and a critic that mixes their policies.

    Args:
        config: The `algorithm` group.
        train: The `train` group.
        env: The environment, for its sizes and its device.
    """

    config: Config
    critic: MixingCritic
    target_critic: MixingCritic

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        learning_rate = config.agents_rate * train.learning_rate
        self.actor_optimiser = make_optimiser(train, self.actor_parameters, learning_rate)

    def build_critic(self, env: TeamEnv) -> MixingCritic:
        """Build the critic with its initial parameters."""
        return MixingCritic(env.n_agents * env.n_actions, env.state_dim, self.config.embed, self.config.hypernet)

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Take one gradient step of the critic, then one of the agents, and return metrics to log."""
        steps, observations = batch.packed_steps(), batch.packed_observations()
        inputs = observations.pack(self.inputs.sequence_inputs(batch.obs, batch.actions))
        logits = observations.unpack(self.agents.unroll(inputs, observations))
        policy = MaskedCategorical(logits, batch.available_actions)  # [T + 1, B, n, A]
        actions = F.one_hot(self.all_actions(batch, policy), self.n_actions).to(batch.state.dtype)
        state, mask = steps.pack(batch.state[:-1]), steps.pack(batch.mask)
        with torch.no_grad():
            next_value = self.target_critic(steps.pack(actions[1:]), steps.pack(batch.state[1:]))
            target = steps.pack(self.targets(batch, steps.unpack(next_value)))
        q = self.critic(steps.pack(actions[:-1]), state)
        value_loss = masked_mean((q - target).square(), mask)
        critic_norm = self.update_critic(value_loss)
        objective = masked_mean(self.critic(steps.pack(policy.probs[:-1]), state), mask)
        entropy = masked_mean(policy.entropy[:-1], batch.mask)
        entropy_bonus = self.config.entropy * entropy / entropy.detach().clamp(min=_MIN_ENTROPY)
        norm = self.update_agents(-objective - entropy_bonus)
        self.update_targets()
        metrics = {
            "policy_loss": -objective,
            "value_loss": value_loss,
            "entropy": entropy,
            "q": masked_mean(q, mask),
            "grad_norm": norm,
            "critic_grad_norm": critic_norm,
        }
        return {name: value.detach() for name, value in metrics.items()}


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Lica:
    """Build the algorithm of `algorithm=lica`."""
    assert isinstance(run.algorithm, Config)
    return Lica(run.algorithm, run.train, env)
