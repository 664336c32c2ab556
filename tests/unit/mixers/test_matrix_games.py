"""What each mixer can represent: one-step matrix games, every joint action seen equally often, learnt by Q-learning itself.

The first game is that of QTRAN's and Weighted QMIX's papers; their tables report what is tested here. With a constant
observation the agents' networks are tables of three Qs.
"""

import itertools

import pytest
import torch

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import schema
from qllm_exp.envs import make_env
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.mixers import make_mixer
from qllm_exp.mixers.base import JointAction
from qllm_exp.mixers.qatten import Config as QattenConfig
from qllm_exp.mixers.qfix import Config as QfixConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.qplex import Config as QplexConfig
from qllm_exp.mixers.qtran import Config as QtranConfig
from qllm_exp.mixers.vdn import Config as VdnConfig
from qllm_exp.mixers.wqmix import Config as WqmixConfig

pytestmark = pytest.mark.slow

ENV = make_env(MatrixConfig(num_envs=1), 1, 0)
ALL = torch.tensor(list(itertools.product(range(3), repeat=2)))  # [9, 2]
PUBLISHED = torch.tensor([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]])
CLIMBING = torch.tensor([[11.0, -30.0, 0.0], [-30.0, 7.0, 0.0], [0.0, 6.0, 5.0]])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are so small that threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    config: schema.MixerConfig, payoff: torch.Tensor, updates: int, rate: float = 6e-3
) -> tuple[float, torch.Tensor]:
    """The payoff of the joint action that the agents come to prefer, and the value [3, 3] of every joint action."""
    torch.manual_seed(0)
    train = schema.TrainConfig(
        network="mlp", hidden=32, optimiser="rmsprop", learning_rate=rate, gamma=0.0, standardise_rewards=False
    )
    algo = QLearning(QLearningConfig(targets="n_step"), train, ENV, make_mixer(config, ENV))
    obs, state = torch.ones(2, 9, 2, 1), torch.full((2, 9, 2), -1.0)
    happened = torch.ones(1, 9, dtype=torch.bool)
    available = torch.ones(2, 9, 2, 3, dtype=torch.bool)
    batch = EpisodeBatch(obs, state, available, ALL[None], payoff.view(1, 9), happened, happened)
    for update in range(updates):
        algo.optimiser.param_groups[0]["lr"] = train.learning_rate * (1 - update / updates)
        algo.learn(batch)
    with torch.no_grad():
        all_qs = algo.agents.unroll(algo.inputs.sequence_inputs(obs, ALL[None]))[:1]
        joint = JointAction(all_qs, available[:1], ALL[None])
        return float(payoff[tuple(joint.best_actions[0, 0])]), algo.mixer.q_tot(joint, state[:1]).view(3, 3)


@pytest.mark.parametrize("config", [VdnConfig(), QmixConfig(), QattenConfig()], ids=lambda config: config.name)
def test_monotone_mixers_settle_for_a_joint_action_that_is_not_best(config):
    payoff, values = train(config, PUBLISHED, 200)
    assert payoff == 0 and (values - PUBLISHED).abs().max() > 5


def test_vdn_ends_at_the_least_squares_fit_of_its_form():
    _, values = train(VdnConfig(), PUBLISHED, 400)
    rows, columns, mean = PUBLISHED.mean(1, keepdim=True), PUBLISHED.mean(0, keepdim=True), PUBLISHED.mean()
    assert torch.allclose(values, rows + columns - mean, atol=0.3)


def test_qtran_finds_the_best_joint_action_and_the_payoffs():
    for game in (PUBLISHED, CLIMBING):
        payoff, values = train(QtranConfig(), game, 320)
        assert payoff == game.max() and torch.allclose(values, game, atol=0.5)


@pytest.mark.parametrize(
    ("game", "updates", "rate"),
    [(PUBLISHED, 1600, 2e-3), (CLIMBING, 400, 6e-3)],
    ids=["published", "climbing"],
)
def test_qplex_finds_the_best_joint_action_and_can_represent_the_game(game, updates, rate):
    payoff, values = train(QplexConfig(), game, updates, rate)
    assert payoff == game.max()
    assert torch.allclose(values, game, atol=0.5)


@pytest.mark.parametrize("game", [PUBLISHED, CLIMBING], ids=["published", "climbing"])
@pytest.mark.parametrize("additive", [True, False], ids=["q+fix", "qfix"])
@pytest.mark.parametrize("variant", ["sum", "mono", "lin"])
def test_qfix_can_represent_a_game_whose_best_joint_action_the_agents_prefer(variant, additive, game):
    torch.manual_seed(0)
    mixer = make_mixer(QfixConfig(variant=variant, additive=additive), ENV)
    all_qs = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]).expand(9, 2, 3)
    joint, state = JointAction(all_qs, torch.ones(9, 2, 3, dtype=torch.bool), ALL), torch.full((9, 2), -1.0)
    layer = [*mixer.weights.parameters(), *mixer.bias.parameters()]  # the fixee stays as it is
    optimiser = torch.optim.Adam(layer, lr=1e-2)
    for _ in range(1000):
        errors = mixer.q_tot(joint, state) - game.flatten()
        if errors.abs().max() < 0.5:
            break
        optimiser.zero_grad()
        errors.square().mean().backward()
        optimiser.step()
    assert errors.abs().max() < 0.5
    additive_only = mixer(joint.qs, state).view(3, 3)  # what it is added to cannot
    assert (additive_only - game).abs().max() > 3


@pytest.mark.parametrize(("variant", "updates"), [("sum", 800), ("mono", 800), ("lin", 1600)])
def test_additive_qfix_finds_the_best_joint_action_and_the_payoffs(variant, updates):
    payoff, values = train(QfixConfig(variant=variant), CLIMBING, updates)
    assert payoff == CLIMBING.max() and torch.allclose(values, CLIMBING, atol=0.5)


@pytest.mark.parametrize("weighting", ["cw", "ow"])
def test_weighted_qmix_finds_the_best_joint_action_though_it_is_as_monotone_as_qmix(weighting):
    payoff, values = train(WqmixConfig(weighting=weighting, unrestricted=64), PUBLISHED, 320)
    assert payoff == 8 and abs(values[0, 0] - 8) < 1  # what it is worth is learnt for the best one
    assert (values - PUBLISHED).abs().max() > 3  # and cannot be for all
    equal, _ = train(WqmixConfig(weighting=weighting, unrestricted=64, alpha=1.0), PUBLISHED, 320)
    assert equal == 0  # equal weights: QMIX
