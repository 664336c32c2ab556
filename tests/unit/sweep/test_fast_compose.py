"""`Composer` gives the configurations that Hydra composes one by one."""

import random
from functools import reduce
from operator import attrgetter

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

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
    "train.total_steps": ["1000", "2e4"],
    "train.steps_per_update": ["100", "8 episodes"],
    "train.evaluation.every": ["100", "50000"],
    "train.standardise_rewards": ["true", "false"],
    "train.optimiser": ["adam", "rmsprop", "'adam'"],
    "env.reward": ["sum", "mean"],
    "env.num_envs": ["auto", "16"],
    "algorithm.td_lambda": ["0", "0.5", "1.0"],
    "llm.temperature": ["null", "0.5"],
    "tfcaf.search.generations": ["1", "3"],
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
@pytest.mark.parametrize("seed", range(8))
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
    for overrides in random.Random(0).sample(wanted, min(4, len(wanted))):
        fast = outcome(lambda overrides=overrides: composer(overrides))
        assert fast == outcome(lambda overrides=overrides: load_run(hydra(overrides))), overrides


REFERENCES = {  # key: references that make sense as its value, and the value in terms of other keys
    "sweep.tags": ["[${env.name},${mixer.name}]", "[seed-${seed}]", "[${train.name}]"],
    "sweep.name": ["${env.name}", "${env.name}_${env.task}", "'${mixer.name}'", "${oc.env:NO_SUCH_VARIABLE,x}"],
    "train.evaluation.every": ["${train.total_steps}", "${.episodes}", "1000"],
    "train.steps_per_update": ["${train.batch_episodes}", "${env.episode_limit}"],
    "train.learning_rate": ["${algorithm.td_lambda}", "1e-3"],
    "env.episode_limit": ["${train.batch_episodes}", "20"],
    "tfcaf.search.generations": ["${tfcaf.rounds}", "2"],
}


@pytest.mark.parametrize("seed", range(8))
def test_references_have_the_values_that_plain_hydra_gives_them(hydra, seed):
    rng = random.Random(seed)
    choices = {
        "env": ["lbf", "mpe", "matrix"],
        "mixer": ["qmix", "vdn"],
        "seed": ["1-2"],
        "train.batch_episodes": ["40"],
    }
    choices |= {"train.total_steps": ["1000", "20000"], "train": ["fair", "quick"]}
    axes = choices | REFERENCES
    keys = rng.sample([*choices], 3) + rng.sample([*REFERENCES], 3)
    rng.shuffle(keys)
    wanted = combinations(
        [f"{key}={','.join(rng.sample(axes[key], min(len(axes[key]), rng.randint(1, 2))))}" for key in keys]
    )
    composer = Composer(hydra, wanted)
    for overrides in rng.sample(wanted, min(3, len(wanted))):
        run = composer(overrides)
        assert run == load_run(hydra(overrides)), overrides
        plain = OmegaConf.to_container(hydra(overrides), resolve=True)
        for key in keys:
            if key in REFERENCES:
                group, *rest = key.split(".")
                assert attrgetter(key)(run) == reduce(dict.get, rest, plain[group]), overrides


def test_a_reference_to_nothing_is_refused_with_its_key(hydra):
    for overrides in (("sweep.name=${env.nam}",), ("train.evaluation.every=${total_steps}",)):
        with pytest.raises(UserError, match=rf"^{overrides[0].partition('=')[0]}: .*not found"):
            Composer(hydra, [overrides])(overrides)


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
