"""Environments, rollouts and updates for a GPU, on one that is not there: no tensors of two devices, and no update waits for it."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from fake_gpu import MixedDevicesError, SynchronisesError, fake_gpu
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from qllm_exp.algorithms import make_algorithm
from qllm_exp.algorithms.q_learning import QLearning
from qllm_exp.config import registry
from qllm_exp.config.load import load_run
from qllm_exp.config.schema import EnvConfig, RunConfig
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.mpe import env as mpe_env
from qllm_exp.envs.mpe import sides
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.envs.pursuit import Config as PursuitConfig
from qllm_exp.envs.smax import Config as SmaxConfig
from qllm_exp.mixers import make_mixer
from qllm_exp.training.replay import EpisodeStorage, Experience, ReplayBuffer
from qllm_exp.training.rollout import rollout
from qllm_exp.training.timer import Timer

pytestmark = pytest.mark.slow

LIMIT = 3  # shorter than the interval at which a rollout looks whether all copies are done, which waits for the GPU
COPIES = 3
ENVIRONMENTS: dict[str, Callable[[], EnvConfig]] = {
    "mpe-simple_adversary": lambda: MpeConfig(task="simple_adversary"),
    "mpe-simple_speaker_listener": lambda: MpeConfig(task="simple_speaker_listener"),
    "matrix-climbing": lambda: MatrixConfig(task="climbing"),
    "lbf-8x8-2p-2f-coop-2s": lambda: LbfConfig(task="8x8-2p-2f-coop-2s"),
    "lbf-masked": lambda: LbfConfig(task="8x8-2p-2f-coop-2s", mask_ineffective=True),
    "lbf-observations": lambda: LbfConfig(task="8x8-2p-2f-coop-2s", state="observations"),
    "pursuit-torus": lambda: PursuitConfig(task="5x5-4h-4p", penalty=-1.5),
    "pursuit-borders": lambda: PursuitConfig(task="10x10-8h-8p", torus=False),
    "smax-3m": lambda: SmaxConfig(task="3m"),
    "smax-smacv2_5_units": lambda: SmaxConfig(task="smacv2_5_units"),
}
ALGORITHMS = [name for name in registry.choices("algorithm") if name != "q_learning"]
METHODS = [f"q_learning-{name}" for name in registry.choices("mixer")] + ALGORITHMS
VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "radam": {"train": {"optimiser": "radam"}},
    "rmsprop": {"train": {"optimiser": "rmsprop"}},
    "periodic": {"algorithm": {"target_update": "periodic", "target_period": 1}},
    "n_step": {"algorithm": {"targets": "n_step", "n_step": 3}},
    "last_action": {"algorithm": {"last_action": True}},
}


def config(method: str, variant: str = "") -> RunConfig:
    """The configuration of an algorithm, with a mixer if the method names it, on a task with a bundled function."""
    algorithm, _, mixer = method.partition("-")
    accepts = registry.find("algorithm", algorithm).ACCEPTS
    groups = {
        "algorithm": {"name": algorithm},
        "mixer": {"name": mixer or ("vdn" if accepts is None else accepts[0])},
        "train": {"name": "fair", "hidden": 8, "batch_episodes": COPIES, "standardise_rewards": True},
        "env": {"name": "lbf", "task": "8x8-2p-2f-coop-2s", "episode_limit": LIMIT},
    }
    if mixer == "tfcaf":
        groups["mixer"]["file"] = str(bundled_path("lbf", "8x8-2p-2f-coop-2s"))
    for group, options in VARIANTS.get(variant, {}).items():
        groups[group] |= options
    return load_run(groups)


def play(env: TeamEnv, algorithm: object) -> EpisodeStorage:
    """The episodes of one rollout; nothing in it may wait for the GPU."""
    storage = EpisodeStorage(env, env.num_envs)
    rollout(env, algorithm, storage, 0, torch.Generator(env.device), Timer(env.device))
    return storage


def stored_episodes(env: TeamEnv) -> Experience:
    """Replayed episodes of full length. They are read as from a checkpoint: what is on a fake GPU has no values."""
    buffer = ReplayBuffer(env, 2 * COPIES)
    records = np.zeros((2 * COPIES, buffer.record_size()), np.uint8)
    records[:, :8] = np.frombuffer(np.int64(LIMIT).tobytes(), np.uint8)
    buffer.load_records(records, list(range(2 * COPIES)))
    buffer.restore_counters(0, 2 * COPIES, 2 * COPIES)
    return Experience(buffer, COPIES, torch.Generator())


@pytest.fixture
def values_of_mpe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What env=mpe reads when it is built: gravity, and controls to name them. Its cache of pushes loses the fake tensors."""
    monkeypatch.setattr(mpe_env, "is_circle_world", lambda world: True)
    monkeypatch.setattr(mpe_env.MpeEnv, "_action_labels", lambda env: ("push",) * env.n_actions)
    sides._pushes.cache_clear()
    yield
    sides._pushes.cache_clear()


def play_first_actions(env_config: EnvConfig, may_wait: bool) -> None:
    """Play an episode on a GPU that is not there, with the first available actions.

    Args:
        env_config: The environment.
        may_wait: Whether copies to the GPU may wait for it.
    """
    env_config.episode_limit = LIMIT
    with fake_gpu() as gpu:
        env = make_env(env_config, COPIES, 0, "cuda")
        env.seed(0)
        with contextlib.nullcontext() if may_wait else gpu.asynchronous():
            moment = env.reset()
            for _ in range(LIMIT):
                moment = env.step(moment.available_actions.byte().argmax(-1))
            metrics = env.episode_metrics()
    assert {x.device.type for x in (*moment, *metrics.values())} == {"cuda"}


@pytest.mark.usefixtures("values_of_mpe")
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_stay_on_the_gpu(name: str) -> None:
    play_first_actions(ENVIRONMENTS[name](), may_wait=name.startswith("mpe"))  # VMAS copies constants in every step


@pytest.mark.usefixtures("values_of_mpe")
@pytest.mark.parametrize("task", ["simple_spread", "simple_tag"])
def test_only_vmas_itself_reads_values_back(task: str) -> None:
    """Its rewards of these tasks select the copies in which agents overlap, so that every step waits for the GPU."""
    with pytest.raises(DynamicOutputShapeException) as raised:
        play_first_actions(MpeConfig(task=task), may_wait=True)
    assert any(str(entry.path).endswith(f"vmas/scenarios/mpe/{task}.py") for entry in raised.traceback)


def update(run: RunConfig, algorithm_class: type[QLearning] | None = None, updates: int = 1) -> dict[str, torch.Tensor]:
    """Metrics of the last of some updates on a GPU that is not there, after a rollout."""
    mixer = make_mixer(run.mixer, make_env(run.env, COPIES, 0))  # a function's values are checked once, on the CPU
    with fake_gpu() as gpu:
        env = make_env(run.env, COPIES, 0, "cuda")
        if algorithm_class is None:
            algorithm = make_algorithm(run, env, mixer)
        else:
            algorithm = algorithm_class(run.algorithm, run.train, env, mixer)
        experience = stored_episodes(env)
        with gpu.asynchronous():
            storage = play(env, algorithm)
            algorithm.observe(storage.reward, storage.mask())
            for _ in range(updates):
                metrics = algorithm.update(experience)
        policy = algorithm.policy_state_dict()
    assert {x.device.type for x in (*policy.values(), *metrics.values())} == {"cuda"}
    return metrics


@pytest.mark.parametrize("method", METHODS)
def test_an_update_does_not_wait_for_the_gpu(method: str) -> None:
    assert update(config(method))


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_do_other_settings(variant: str) -> None:
    assert update(config("q_learning-qmix", variant), updates=2)  # the first creates what an optimiser keeps


# Algorithms with one fault, each of which a run on a GPU would pay for or fail on


class ReadsAValue(QLearning):
    def learn(self, batch):
        metrics = super().learn(batch)
        return metrics | {"loss": torch.full_like(metrics["loss"], metrics["loss"].item())}


class Branches(QLearning):
    def learn(self, batch):
        return super().learn(batch) if batch.mask.all() else {}


class SelectsRows(QLearning):
    def learn(self, batch):
        metrics = super().learn(batch)
        return metrics | {"reward": batch.reward[batch.mask].mean()}


class CopiesToTheCpu(QLearning):
    def learn(self, batch):
        return {name: value.cpu() for name, value in super().learn(batch).items()}


class CopiesFromTheCpu(QLearning):
    def learn(self, batch):
        weights = torch.tensor([1.0] * batch.reward.shape[1], device=self.device)
        return super().learn(batch._replace(reward=batch.reward * weights))


class HasACpuConstant(QLearning):
    def learn(self, batch):
        return super().learn(batch._replace(reward=batch.reward * torch.ones(batch.reward.shape[1])))


class HasACpuIndex(QLearning):
    def learn(self, batch):
        return super().learn(batch._replace(reward=batch.reward[:, torch.arange(batch.reward.shape[1])]))


class DrawsOnTheCpu(QLearning):
    def learn(self, batch):
        noise = torch.rand(batch.reward.shape, generator=torch.Generator(), device=self.device)
        return super().learn(batch._replace(reward=batch.reward + noise))


FAULTS = [
    (ReadsAValue, DataDependentOutputException),
    (Branches, DataDependentOutputException),
    (SelectsRows, DynamicOutputShapeException),
    (CopiesToTheCpu, SynchronisesError),
    (CopiesFromTheCpu, SynchronisesError),
    (HasACpuConstant, MixedDevicesError),
    (HasACpuIndex, MixedDevicesError),
    (DrawsOnTheCpu, MixedDevicesError),
]


@pytest.mark.parametrize(("algorithm_class", "error"), FAULTS, ids=lambda value: value.__name__)
def test_a_fault_is_noticed(algorithm_class: type[QLearning], error: type[Exception]) -> None:
    with pytest.raises(error):
        update(config("q_learning-qmix"), algorithm_class)
