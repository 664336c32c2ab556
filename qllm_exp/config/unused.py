"""Options that the other options of a run leave without effect. They do not define the run, and tables do not show them."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from qllm_exp.config import registry
from qllm_exp.config.schema import ReflectionConfig

# Option: another option, and the value of it that the option needs to have an effect, in a run that has the other option.
_NEEDS = {
    "algorithm.n_step": ("algorithm.targets", "n_step"),
    "algorithm.td_lambda": ("algorithm.targets", "td_lambda"),
    "algorithm.target_tau": ("algorithm.target_update", "soft"),
    "algorithm.target_period": ("algorithm.target_update", "periodic"),
    "mixer.embed": ("mixer.variant", "mono"),
}
_EVOLUTION = ("islands", "migration", "archive", "parents", *(f"reflection.{f.name}" for f in fields(ReflectionConfig)))
_ALL_SEARCHES = ("generations", "steps", "seeds", "kept", "tolerance", "tune", "models", "exploration", "dollar_weight")
_PROCEDURE = ("tfcaf.rounds", "tfcaf.evaluator", "tfcaf.memory")  # of QLLM's procedure, which a search does not run
_ON_POLICY = ("coma", "ippo", "lica", "mappo", "pqn")  # one update per rollout, on its episodes: nothing is replayed
_REPLAY = ("train.batch_episodes", "train.buffer_episodes", "train.steps_per_update")
_GRF_ATTACK = ("academy_counterattack_easy", "academy_counterattack_hard")  # the agents are the attackers, in any case


def unused_options(value: Callable[[str], Any]) -> set[str]:
    """Return the dotted keys of options that have no effect in a run.

    Only options of the package's own choices are judged: a user's algorithm or mixer may read what it wants.

    Args:
        value: returns the value of a dotted key; None if the run has no such option.
    """
    unused = {key for key, (other, needed) in _NEEDS.items() if value(other) not in (None, needed)}
    if value("mixer.name") != "qfix":
        unused.discard("mixer.embed")
    if value("algorithm.epsilon_start") == value("algorithm.epsilon_end"):
        unused.add("algorithm.epsilon_steps")
    method = value("tfcaf.search.method")
    unused.update(_PROCEDURE if method not in ("none", None) else (f"tfcaf.search.{name}" for name in _ALL_SEARCHES))
    if method != "evolve":
        unused.update(f"tfcaf.search.{name}" for name in _EVOLUTION)
    algorithm = value("algorithm.name")
    if algorithm in _ON_POLICY:
        unused.update(_REPLAY)
    if value("algorithm.replay_episodes") == 0:
        unused.add("train.buffer_episodes")
    if algorithm not in registry.choices("algorithm"):
        unused = {key for key in unused if not key.startswith(("algorithm.", "train."))}
    if value("env.name") == "grf" and value("env.task") in _GRF_ATTACK:
        unused.add("env.goalkeeper")
    return {key for key in unused if value(key) is not None}
