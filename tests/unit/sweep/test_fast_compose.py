"""`Composer` gives the configurations that Hydra composes one by one."""

import random

import pytest
from hydra import compose, initialize_config_dir

from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run, to_dict
from qllm_exp.config.overrides import combinations
from qllm_exp.errors import UserError
from qllm_exp.sweep.fast_compose import Composer

AXES = {
    "env": ["lbf", "mpe", "matrix"],
    "mixer": ["tfcaf", "qmix", "vdn", "none"],
    "train": ["fair", "quick", "paper"],
    "llm": ["bundled", "openai"],
    "seed": ["0-3", "7"],
    "train.learning_rate": ["1e-3", "0.0005", "1"],
    "train.total_steps": ["1000", "20000"],
    "train.steps_per_update": ["100", "8 episodes"],
    "train.evaluation.every": ["100", "50000"],
    "train.standardise_rewards": ["true", "false"],
    "train.optimiser": ["adam", "rmsprop", "'adam'"],
    "env.reward": ["sum", "mean"],
    "env.num_envs": ["auto", "16"],
    "algorithm.td_lambda": ["0", "0.5", "1.0"],
    "llm.temperature": ["null", "0.5"],
    "tfcaf.probe.seeds": ["1", "3"],
    "tfcaf.budget_usd": ["null", "2"],
    "sweep.tags": ["[]", "[a,b]"],
    "device": ["cpu", "auto"],
    "env.episode_limit": ["0", "10", "ten"],
}


@pytest.fixture(scope="module")
def hydra():
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield lambda overrides: compose("config", list(overrides))


def outcome(make):
    try:
        return to_dict(make())
    except UserError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_composer_gives_what_hydra_composes(hydra, seed):
    rng = random.Random(seed)
    keys = [key for key in AXES if rng.random() < 0.3]
    if "llm.temperature" in keys and "llm" not in keys:
        keys.remove("llm.temperature")
    rng.shuffle(keys)
    arguments = [f"{key}={','.join(rng.sample(AXES[key], rng.randint(1, len(AXES[key]))))}" for key in keys]
    if "llm.temperature" in keys:  # the bundled functions have no temperature
        arguments = ["llm=openai" if argument.startswith("llm=") else argument for argument in arguments]
    wanted = combinations(arguments)
    composer = Composer(hydra, wanted)
    for overrides in random.Random(0).sample(wanted, min(6, len(wanted))):
        fast = outcome(lambda overrides=overrides: composer(overrides))
        assert fast == outcome(lambda overrides=overrides: load_run(hydra(overrides))), overrides


def test_hydra_composes_each_choice_of_groups_once(hydra):
    calls = []

    def counted(overrides):
        calls.append(overrides)
        return hydra(overrides)

    wanted = combinations(["mixer=qmix,vdn", "seed=0-99", "train.learning_rate=1e-3,1e-4", "train.gamma=0.9"])
    composer = Composer(counted, wanted)
    runs = [composer(overrides) for overrides in wanted]
    assert len(runs) == 400 and len(calls) == 2
    assert {(run.mixer.name, run.seed, run.train.learning_rate) for run in runs} == {
        (mixer, seed, rate) for mixer in ("qmix", "vdn") for seed in range(100) for rate in (1e-3, 1e-4)
    }
