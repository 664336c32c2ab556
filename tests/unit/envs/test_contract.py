"""Every environment keeps the contract of envs/base.py, and each way to break it is noticed, with one line that says how."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from meeting import Config as Meeting
from meeting import Meeting as MeetingEnv

from qllm_exp.config.schema import EnvConfig
from qllm_exp.envs import Observation, StateField, StateLayout, Step, TeamEnv, contract, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.pettingzoo.env import Config as PettingzooConfig
from qllm_exp.envs.pursuit import Config as PursuitConfig
from qllm_exp.envs.smax import Config as SmaxConfig
from qllm_exp.errors import ContractError

LIMIT = 25
CONFIGS: dict[str, Callable[[], EnvConfig]] = {
    "mpe-simple_spread": lambda: MpeConfig(task="simple_spread"),
    "mpe-simple_adversary": lambda: MpeConfig(task="simple_adversary"),
    "mpe-simple_tag": lambda: MpeConfig(task="simple_tag"),
    "mpe-spread-pettingzoo": lambda: MpeConfig(task="simple_spread", rules="pettingzoo"),
    "mpe-adversary-pettingzoo": lambda: MpeConfig(task="simple_adversary", rules="pettingzoo"),
    "mpe-tag-pettingzoo": lambda: MpeConfig(task="simple_tag", rules="pettingzoo"),
    "matrix-climbing": lambda: MatrixConfig(task="climbing"),
    "matrix-penalty-100": lambda: MatrixConfig(task="penalty-100"),
    "pettingzoo-mpe2.simple_spread_v3": lambda: PettingzooConfig(task="mpe2.simple_spread_v3"),
    "meeting-3p": lambda: Meeting(task="3p"),
    "lbf-8x8-2p-2f-coop-2s": lambda: LbfConfig(task="8x8-2p-2f-coop-2s"),
    "pursuit-torus": lambda: PursuitConfig(task="5x5-4h-4p", penalty=-1.5),
    "pursuit-borders": lambda: PursuitConfig(task="10x10-8h-8p", torus=False),
    "smax-3m": lambda: SmaxConfig(task="3m"),
    "smax-smacv2_5_units": lambda: SmaxConfig(task="smacv2_5_units"),
    "lbf-masked": lambda: LbfConfig(task="8x8-2p-2f-coop-2s", mask_ineffective=True),
}
IS_CONSTANT = ["seeds 5 and 6 give the same episodes: nothing is random"]


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_environment_keeps_the_contract(name: str, check: Callable[[contract.EnvMaker], list[str]]) -> None:
    maker = contract.EnvMaker(replace(CONFIGS[name](), episode_limit=LIMIT), make_env)
    is_constant = name.startswith("matrix") and check is contract.check_seeds
    assert check(maker) == (IS_CONSTANT if is_constant else [])


# Broken environments: a working one with a single fault


class Broken(MeetingEnv):
    """The example environment, with a method that tests replace."""

    def start(self, observation: Observation) -> Observation:
        return observation

    def result(self, step: Step) -> Step:
        return step

    def reset(self) -> Observation:
        return self.start(super().reset())

    def step(self, actions: torch.Tensor) -> Step:
        return self.result(super().step(actions))


class WrongObservationSize(Broken):
    def start(self, observation):
        return observation._replace(obs=torch.cat([observation.obs, observation.obs], -1))


class BroadcastObservation(Broken):
    """Its observations would be stored without an error, the same for every copy."""

    def result(self, step):
        return step._replace(obs=step.obs[0])


class WrongObservationDtype(Broken):
    def start(self, observation):
        return observation._replace(obs=observation.obs.double())


class NumpyState(Broken):
    def result(self, step):
        return step._replace(state=step.state.numpy())


class PlainTuple(Broken):
    def start(self, observation):
        return tuple(observation)


class IntegerMask(Broken):
    def start(self, observation):
        return observation._replace(available_actions=observation.available_actions.int())


class MaskOfOtherActions(Broken):
    def result(self, step):
        return step._replace(available_actions=step.available_actions[..., :2])


class NothingAvailable(Broken):
    def result(self, step):
        available = step.available_actions.clone()
        available[1, 0] = False
        return step._replace(available_actions=available)


class RewardPerAgent(Broken):
    def result(self, step):
        return step._replace(reward=step.reward.unsqueeze(-1).expand(-1, self.n_agents))


class RewardNan(Broken):
    def result(self, step):
        return step._replace(reward=torch.full_like(step.reward, torch.nan) if self.steps == 2 else step.reward)


class RewardAfterTheEnd(Broken):
    def result(self, step):
        return step._replace(reward=step.reward - 1)


class TerminatedIsANumber(Broken):
    def result(self, step):
        return step._replace(terminated=step.terminated.float())


class MergedEnds(Broken):
    """At the time limit it says terminated as well."""

    def result(self, step):
        return step._replace(terminated=step.terminated | step.truncated)


class EndlessEpisodes(Broken):
    def result(self, step):
        return step._replace(truncated=torch.zeros_like(step.truncated))


class EarlyLimit(Broken):
    def result(self, step):
        return step._replace(truncated=step.truncated | (~step.terminated & (self.steps == 3)))


class LimitOfItsOwn(Broken):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.episode_limit = 50


class StateOutOfRange(Broken):
    def start(self, observation):
        return observation._replace(state=observation.state + 100)


class ShortLayout(Broken):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.layout = StateLayout.from_fields([StateField("agent", 0, "cell", ("index",), 0.0, 6.0)])


class UnseededRandomness(Broken):
    """A generator of the whole process, of which no two draws in a row are equal, decides where an episode starts."""

    draws = itertools.count()

    def start(self, observation):
        self.cell[:, 0] = next(self.draws) % self.cells
        return Observation(*self._seen())


class LeakyReset(Broken):
    """The cells at the end of an episode decide where the next one starts."""

    cell: torch.Tensor = torch.tensor(0)

    def reset(self):
        last = self.cell.clone()
        super().reset()
        self.cell = (self.cell + last) % self.cells
        return Observation(*self._seen())


class ForgetfulState(Broken):
    def state_dict(self):
        return {}

    def load_state_dict(self, saved):
        pass


class UnsavableState(Broken):
    def state_dict(self):
        return {"random": random.Random(0)}


class LiveState(Broken):
    """Its saved tensor goes on counting."""

    count = torch.zeros(1, dtype=torch.int64)

    def seed(self, seed):
        self.first, self.count = seed, torch.zeros(1, dtype=torch.int64)

    def reset(self):
        self.generator.manual_seed(self.first * 1000 + int(self.count))
        self.count += 1
        return super().reset()

    def state_dict(self):
        return {"first": self.first, "count": self.count}

    def load_state_dict(self, saved):
        self.first, self.count = saved["first"], saved["count"].clone()


class ReusedTensor(Broken):
    def result(self, step):
        self.buffer = getattr(self, "buffer", step.obs)
        self.buffer.copy_(step.obs)
        return step._replace(obs=self.buffer)


class SharedTensor(Broken):
    """It continues from the state tensor that the caller has."""

    def _seen(self):
        obs, _, available = super()._seen()
        self.cell = self.cell.float()
        return obs, self.cell, available


class NoPlainAgents(Broken):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.n_agents = 2.0


FAULTS: list[tuple[type[TeamEnv], str]] = [
    (WrongObservationSize, "reset() returned obs of shape [3, 2, 4], expected [3, 2, 2], i.e. [N, n_agents, obs_dim]"),
    (BroadcastObservation, "step() returned obs of shape [2, 2], expected [3, 2, 2], i.e. [N, n_agents, obs_dim]"),
    (WrongObservationDtype, "reset() returned obs of dtype float64, expected float32"),
    (NumpyState, "step() returned state as a ndarray, expected a torch.Tensor"),
    (PlainTuple, "reset() returned a tuple, expected Observation(obs, state, available_actions)"),
    (IntegerMask, "reset() returned available_actions of dtype int32, expected bool"),
    (MaskOfOtherActions, "step() returned available_actions of shape [3, 2, 2], expected [3, 2, 3]"),
    (NothingAvailable, "step() at step 1 returned no available action for agent 0 in copy 1, expected at least one"),
    (RewardPerAgent, "step() returned reward of shape [3, 2], expected [3], i.e. [N]"),
    (RewardNan, "step() at step 2 returned reward nan, expected finite values"),
    (RewardAfterTheEnd, "returned reward -1 for a copy whose episode has ended, expected 0 until the next reset"),
    (TerminatedIsANumber, "step() returned terminated of dtype float32, expected bool"),
    (MergedEnds, "step() at step 7 returned a copy both terminated and truncated, expected one of them"),
    (EndlessEpisodes, "step() at step 7 did not end the episode at episode_limit=7"),
    (EarlyLimit, "step() at step 3 truncated an episode, expected that at episode_limit=7 only"),
    (LimitOfItsOwn, "make() built episode_limit=50, but env.episode_limit=20 was set"),
    (StateOutOfRange, "state field 'agent 0 cell' is "),
    (ShortLayout, "reset() returned state of shape [3, 2], expected [3, 1], i.e. [N, columns of the layout]"),
    (UnseededRandomness, "reset and step() are not determined by the seed: with seed 5 and the same actions, two"),
    (LeakyReset, "reset() keeps something of earlier episodes: after seed(5), an environment that has played differs"),
    (
        ForgetfulState,
        "load_state_dict() does not continue as before: the next episodes differ in obs after reset of episode",
    ),
    (UnsavableState, "state_dict() returned something that a checkpoint cannot hold ("),
    (LiveState, "state_dict() has returned tensors that the environment changes later. Return copies"),
    (ReusedTensor, "step() writes into tensors that were returned before: obs after step 1 changed"),
    (SharedTensor, "step() depends on tensors that it returned before: after writing into them, "),
    (NoPlainAgents, "n_agents=2.0, expected a whole number from 1"),
]


def first_fault(env_class: type[TeamEnv]) -> str:
    """The message of the first check that the environment does not pass."""

    def build(config: Meeting, num_envs: int, seed: int) -> TeamEnv:
        env = env_class(config, num_envs, seed, torch.device("cpu"))
        contract.check_sizes(env, "meeting", num_envs)
        return env

    for check in contract.CHECKS:
        try:
            check(contract.EnvMaker(Meeting(), build))
        except ContractError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(("env_class", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_fault_is_one_line_that_says_what_is_wrong(env_class: type[TeamEnv], message: str) -> None:
    text = first_fault(env_class)
    assert message in text and text.startswith("env=meeting") and "\n" not in text, text


def test_an_environment_without_a_fault_passes() -> None:
    assert first_fault(Broken) == ""


class DrawsInSteps(Broken):
    def result(self, step):
        torch.rand(1, generator=self.generator)
        return step


def test_starts_that_depend_on_the_length_of_earlier_episodes_are_noted() -> None:
    maker = contract.EnvMaker(Meeting(task="3p"), lambda *arguments: DrawsInSteps(*arguments, torch.device("cpu")))
    (note,) = contract.check_seeds(maker)
    assert note.startswith("a start depends on the number of steps before it")


def test_what_is_not_an_environment_is_named() -> None:
    with pytest.raises(ContractError, match=r"env=mine: make\(\) returned None, expected a TeamEnv"):
        contract.check_sizes(None, "mine", 3)


class OnAnotherDevice(Broken):
    """Its tensors are on no GPU, although it says so."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.device = torch.device("cuda")


def test_the_device_of_tensors_is_that_of_the_environment() -> None:
    env = OnAnotherDevice(Meeting(), 3, 0, torch.device("cpu"))
    moment = Observation(torch.zeros(3, 2, 2), torch.zeros(3, 2), torch.ones(3, 2, 3, dtype=torch.bool))
    with pytest.raises(ContractError, match="returned obs on device cpu, expected cuda"):
        contract.check_moment(env, moment, "reset")


@pytest.mark.parametrize(
    ("actual", "expected", "is_on"),
    [("cuda:0", "cuda", True), ("cuda:1", "cuda:1", True), ("cuda:0", "cuda:1", False), ("cpu", "cuda", False)],
)
def test_cuda_stands_for_any_gpu(actual: str, expected: str, is_on: bool) -> None:
    """A tensor that is made on 'cuda' says 'cuda:0'."""
    assert contract._is_on(torch.device(actual), torch.device(expected)) == is_on
