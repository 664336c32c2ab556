"""Algorithms, found by name: `algorithm.name=q_learning` is the module of that name here; any other is the user's own.

Each module has `make(run, env, mixer) -> Algorithm`, and `ACCEPTS`, the names of the mixers it can be combined with (None: all
of them). It may have `REFUSES`, the mixers that it cannot be combined with all the same, each with the reason.
"""

from typing import Any

from qllm_exp.algorithms.base import Algorithm, EpisodeBatch
from qllm_exp.config import registry
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.mixers.base import Mixer

__all__ = ["Algorithm", "EpisodeBatch", "check_combination", "make_algorithm"]


def _module(name: str) -> Any:
    return registry.find("algorithm", name)


def check_combination(algorithm: str, mixer: str) -> None:
    """Raise UserError, naming both, when the algorithm cannot be used with the mixer."""
    module = _module(algorithm)
    accepts, refuses = module.ACCEPTS, getattr(module, "REFUSES", {})
    if accepts is not None and mixer not in accepts:
        raise UserError(f"algorithm={algorithm} does not accept mixer={mixer}. It accepts: {', '.join(accepts)}.")
    if mixer in refuses:
        others = ", ".join(name for name in registry.choices("mixer") if name not in refuses)
        raise UserError(f"algorithm={algorithm} does not accept mixer={mixer}: {refuses[mixer]}. It accepts: {others}.")


def make_algorithm(run: Any, env: TeamEnv, mixer: Mixer) -> Algorithm:
    """Build the algorithm that `run.algorithm.name` names."""
    check_combination(run.algorithm.name, run.mixer.name)
    algorithm: Algorithm = _module(run.algorithm.name).make(run, env, mixer)
    return algorithm
