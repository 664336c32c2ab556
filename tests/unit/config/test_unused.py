"""Options without effect do not define a run. Which ones have none is found by changing each of them and training."""

import contextlib
import dataclasses
from operator import attrgetter

import pytest
import torch

from qllm_exp.config import registry
from qllm_exp.config.compose import compose_run
from qllm_exp.config.load import identity, run_name, to_dict
from qllm_exp.config.unused import unused_options
from qllm_exp.envs import make_env
from qllm_exp.experiment import build_algorithm
from qllm_exp.runs.dotted_keys import flatten
from qllm_exp.training.trainer import Trainer

SMALL = [
    *("env.num_envs=4", "env.episode_limit=6", "train.hidden=4", "train.buffer_episodes=8"),
    *("train.batch_episodes=4", "train.steps_per_update=24", "train.learning_rate=0.05", "train.grad_norm_clip=0.01"),
]
NOT_TRAINING = ("name", "source", "total_steps", "evaluation", "checkpoint")  # of the group `train`
VARIANTS = {
    algorithm: [
        ["algorithm.targets=td_lambda", "algorithm.target_update=soft"],
        ["algorithm.targets=n_step", "algorithm.target_update=periodic", "algorithm.target_period=2"],
    ]
    for algorithm in registry.choices("algorithm")
}
VARIANTS["pqn"] = [[], ["algorithm.layer_norm=false"]]  # it has no target network, and one kind of return
VARIANTS["riit"][0] += ["algorithm.replay_episodes=0"]
VARIANTS["riit"][1] += ["algorithm.replay_episodes=2"]
for _name in ("coma", "pqn", "q_learning"):
    VARIANTS[_name][0] += ["algorithm.epsilon_start=0.2", "algorithm.epsilon_end=0.2"]


def unused(run):
    return unused_options(flatten(to_dict(run)).get)


def training(run):
    """Yield everything that each of five rollouts and their updates leave behind, and an evaluation at the end.

    That is parameters, statistics, metrics and the schedule of the exploration.
    """
    with contextlib.closing(make_env(run.env, run.env.num_envs, 0)) as env:
        algorithm = build_algorithm(run, None, env)
        trainer = Trainer(run.train, env, algorithm, 0, lambda row: 0, lambda progress: None, lambda: False)
        for _ in range(5):
            trainer.cycle()
            tensors = flatten(algorithm.state_dict()).values()
            yield (
                [tensor.tolist() for tensor in tensors if isinstance(tensor, torch.Tensor)],
                {name: float(total) for name, total in trainer.recent_updates.items()},
                algorithm.exploration(trainer.env_steps),
            )
        evaluation = trainer.evaluate(8, "evaluation").row()
        yield {name: value for name, value in evaluation.items() if name != "wall_s"}


def changed(node, field):
    """Another allowed value of an option."""
    value, meta = getattr(node, field.name), field.metadata
    if "allowed" in meta:
        return next(allowed for allowed in meta["allowed"] if allowed != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value // 2 or 2
    return value / 2 or 0.5


def variants(run):
    """Every option of algorithm, mixer and training, with the run that differs in it alone."""
    for group in ("algorithm", "mixer", "train"):
        node = getattr(run, group)
        for field in dataclasses.fields(node):
            ignored = field.name in (NOT_TRAINING if group == "train" else ("name", "num_envs", "file", "igm"))
            if not ignored:
                replaced = dataclasses.replace(node, **{field.name: changed(node, field)})
                yield f"{group}.{field.name}", dataclasses.replace(run, **{group: replaced})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "variant"), [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
)
def test_the_options_without_effect_are_those_that_change_nothing_in_training(algorithm, variant):
    mixer = "qmix" if algorithm in ("q_learning", "pqn", "maser", "riit") else "none"
    env = "mpe" if algorithm == "maser" else "matrix"  # every observation of the matrix games is a subgoal reached
    run = compose_run([*SMALL, f"env={env}", f"algorithm={algorithm}", f"mixer={mixer}", *variant])
    reference = list(training(run))
    without_effect = {
        key
        for key, other in variants(run)
        if all(state == expected for state, expected in zip(training(other), reference, strict=True))
    }
    assert without_effect == {key for key in unused(run) if key.startswith(("algorithm.", "mixer.", "train."))}
    for key, other in variants(run):
        assert (run_name(run, None) == run_name(other, None)) == (key in without_effect), key


@pytest.mark.parametrize(
    ("choices", "without_effect"),
    [
        ([], ["algorithm.n_step=7", "algorithm.target_period=7", "tfcaf.search.kept=0.1"]),
        (["algorithm.targets=n_step"], ["algorithm.td_lambda=0.1"]),
        (["algorithm.epsilon_start=0", "algorithm.epsilon_end=0"], ["algorithm.epsilon_steps=7"]),
        (["algorithm=mappo"], ["train.batch_episodes=7", "train.buffer_episodes=7", "train.steps_per_update=7"]),
        (["mixer=qfix"], ["mixer.embed=7"]),
        (["algorithm=riit", "algorithm.replay_episodes=0"], ["train.buffer_episodes=99"]),
        (["env=grf", "env.task=academy_counterattack_easy"], ["env.goalkeeper=false"]),
    ],
)
def test_options_without_effect_do_not_name_a_run(choices, without_effect):
    run = compose_run(choices)
    for override in without_effect:
        key, _, value = override.partition("=")
        other = compose_run([*choices, override])
        assert str(attrgetter(key)(other)).lower() == value and key in unused(run)
        assert run_name(run, "a") == run_name(other, "a")
    returns = "algorithm.n_step=7" if run.algorithm.targets == "n_step" else "algorithm.td_lambda=0.1"
    effective = [returns, "train.learning_rate=7", "env.episode_limit=7"]
    assert all(run_name(run, "a") != run_name(compose_run([*choices, override]), "a") for override in effective)


def test_an_option_has_an_effect_in_a_run_without_the_option_that_could_leave_it_without():
    for choices, override in (
        (["algorithm=pqn", "mixer=vdn"], "algorithm.td_lambda=0.1"),
        (["mixer=qmix"], "mixer.embed=7"),
        (["mixer=qfix", "mixer.variant=mono"], "mixer.embed=7"),
    ):
        assert run_name(compose_run(choices), None) != run_name(compose_run([*choices, override]), None)


def test_an_option_of_a_users_own_mixer_is_never_without_effect():
    options = {"mixer.name": "mine", "mixer.variant": "a", "mixer.embed": 64}
    assert "mixer.embed" not in unused_options(options.get)


def test_an_option_of_a_users_own_algorithm_is_never_without_effect():
    options = flatten(to_dict(compose_run(["mixer=vdn"]))) | {"algorithm.name": "my_algorithm"}
    assert all(key.startswith("tfcaf.search.") for key in unused_options(options.get))


@pytest.mark.parametrize("algorithm", registry.choices("algorithm"))
def test_the_default_stands_for_an_option_without_effect(algorithm):
    """So a run of defaults keeps the name that it had when such options counted."""
    run = compose_run([f"algorithm={algorithm}"])
    without_effect = {key for key in unused(run) if not key.startswith("tfcaf.")}
    named = flatten(identity(run, None))
    assert without_effect and {key: named[key] for key in without_effect} == {
        key: attrgetter(key)(run) for key in without_effect
    }
