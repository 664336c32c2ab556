"""LICA, learning implicit credit assignment (Zhou et al. 2020, arXiv 2007.02529).

    critic:     Q(s, p_1 .. p_n) = w2(s)^T relu(W1(s)^T (p_1 .. p_n) + b1(s)) + b2(s), all weights of either sign
    learns:     minimise mean [(Q(s_t, u_t) - y_t)^2], u_t the actions taken, one-hot, y_t a TD(lambda) return of target Q
    agents:     maximise mean Q(s, pi_1 .. pi_n) + entropy * H / |H|, end to end, pi_i the probabilities of the available actions

H is the mean entropy of the policies in the batch, |H| its value held fixed: the gradient of the entropy is divided by the
entropy. W1 and w2 come from hypernetworks with one hidden layer, b1 is linear in the state, b2 has one hidden layer.

Where it deviates from the authors' code (github.com/mzho7212/LICA), whose settings train=paper has:
1. There are 10 episodes in a batch [num_envs=32] and the target critic follows softly [target_update=periodic]: 32 episodes of 50
   steps would be 1250 updates in two million steps, and a copy of the critic every 200 of them.
2. Agents and critic have one learning rate [agents_rate=5]; the weight of the entropy is 0.5 [entropy=0.06], and rewards are
   standardised. At the published weight the policies are all but certain before the critic knows anything (see below).
3. The agents do not see their last action [last_action=true].
4. Evaluation draws from the policy [evaluation=greedy].
5. The hidden layer that makes W1 is 64 wide, as in PyMARL2, where the authors have embed * n * A.
The publication divides the entropy's gradient agent by agent; the authors' code, and this, by the mean over the batch.

At the published weight the policies' entropy on lbf 8x8-2p-2f-coop-2s was 0.2 nats after 50k steps, and the return 0.07 after 300k
(one seed; 0.24 with the default). The default keeps a policy from being certain where one action is right: on the matrix games the
most probable actions reach the best return in most seeds, of which the policy that is drawn from gives a fifth to a third away.

An update takes 1.8 times (lbf) to 2.4 times (mpe) as long as one of Q-learning with QMIX on as many episodes, as W1 has
n * A * embed elements that are made from the state three times: for the targets, for the critic and for the agents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.algorithms.actor_critic import ActionCritic, ActorCritic, OnPolicyConfig, mean
from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import optimiser
from qllm_exp.algorithms.masked_categorical import MaskedCategorical
from qllm_exp.config import schema
from qllm_exp.config.schema import RunConfig, TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer


@dataclass
class Config(OnPolicyConfig):
    name: str = "lica"
    targets: str = schema.one_of("td_lambda", "n_step")
    td_lambda: float = schema.number(0.8, 0, 1)
    entropy: float = schema.number(0.5, 0)
    agents_rate: float = schema.number(1.0, 0)
    embed: int = schema.number(64, 1)
    hypernet: int = schema.number(64, 1)


ACCEPTS = ("none",)

_LEAST_ENTROPY = 1e-6  # nats; below it the gradient is divided by no less


class MixingCritic(nn.Module):
    """Q of a joint action, or of the agents' action probabilities, with weights that the state makes.

    Args:
        n_inputs: n * A. state_dim: S. embed: width E of the mixing network. hypernet: hidden width of what makes W1 and w2.
    """

    def __init__(self, n_inputs: int, state_dim: int, embed: int, hypernet: int) -> None:
        super().__init__()
        self.shape = (n_inputs, embed)
        # Hidden layers of W1 and w2, b1, hidden layer of b2: one product.
        self.parts = (hypernet, hypernet, embed, embed)
        self.from_state = nn.Linear(state_dim, sum(self.parts))
        self.weights1 = nn.Linear(hypernet, n_inputs * embed)
        self.weights2 = nn.Linear(hypernet, embed)
        self.bias2 = nn.Linear(embed, 1)

    def forward(self, probs: Tensor, state: Tensor) -> Tensor:
        """Q [...] from probs [..., n, A], one-hot for actions, and state [..., S]."""
        w1, w2, b1, b2 = self.from_state(state).split(self.parts, -1)
        mix = self.weights1(F.relu(w1)).unflatten(-1, self.shape)
        hidden = F.relu((probs.flatten(-2).unsqueeze(-2) @ mix).squeeze(-2) + b1)
        q: Tensor = torch.linalg.vecdot(hidden, self.weights2(F.relu(w2))) + self.bias2(F.relu(b2)).squeeze(-1)
        return q


class Lica(ActionCritic, ActorCritic):
    """Agents, and a critic that mixes their policies.

    Args:
        as `ActorCritic`'s.
    """

    config: Config
    critic: MixingCritic
    target_critic: MixingCritic

    def __init__(self, config: Config, train: TrainConfig, env: TeamEnv) -> None:
        super().__init__(config, train, env)
        self.actor_optimiser = optimiser(train, self.actor_parameters, config.agents_rate * train.learning_rate)

    def build_critic(self, env: TeamEnv) -> MixingCritic:
        return MixingCritic(env.n_agents * env.n_actions, env.state_dim, self.config.embed, self.config.hypernet)

    def learn(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """One gradient step of the critic, then one of the agents."""
        inputs = self.inputs.along(batch.obs, batch.actions)
        policy = MaskedCategorical(self.agents.unroll(inputs), batch.available_actions)  # [T + 1, B, n, A]
        done = F.one_hot(self.all_actions(batch, policy), self.n_actions).to(batch.state.dtype)
        state = batch.state[:-1]
        with torch.no_grad():
            target = self.targets(batch, self.target_critic(done[1:], batch.state[1:]))
        q = self.critic(done[:-1], state)
        error = mean((q - target).square(), batch.mask)
        critic_norm = self.improve_critic(error)
        gain = mean(self.critic(policy.probs[:-1], state), batch.mask)
        entropy = mean(policy.entropy[:-1], batch.mask)
        adaptive = self.config.entropy * entropy / entropy.detach().clamp(min=_LEAST_ENTROPY)
        norm = self.improve_agents(-gain - adaptive)
        self.update_target()
        figures = {"policy_loss": -gain, "value_loss": error, "entropy": entropy, "q": mean(q, batch.mask)}
        figures |= {"grad_norm": norm, "critic_grad_norm": critic_norm}
        return {name: value.detach() for name, value in figures.items()}


def make(run: RunConfig, env: TeamEnv, mixer: Mixer) -> Lica:
    assert isinstance(run.algorithm, Config)
    return Lica(run.algorithm, run.train, env)
