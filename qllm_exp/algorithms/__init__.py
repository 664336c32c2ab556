"""Algorithms, selected by name: `algorithm.name=q_learning` is the module of that name here; any other name is a user's own.

Each module has a function `make(run, env, mixer) -> Algorithm` and `ACCEPTS`, the names of the mixers that it can be combined
with (None: all). It may have `REFUSES`, a mapping from mixers that it cannot be combined with after all to the reasons.
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
    """Check that an algorithm can be combined with a mixer.

    Args:
        algorithm: Name of the algorithm.
        mixer: Name of the mixer.

    Raises:
        UserError: It cannot; the message names both and lists the mixers that the algorithm accepts.
    """
    module = _module(algorithm)
    accepts, refuses = module.ACCEPTS, getattr(module, "REFUSES", {})
    if accepts is not None and mixer not in accepts:
        raise UserError(f"algorithm={algorithm} does not accept mixer={mixer}. It accepts: {', '.join(accepts)}.")
    if mixer in refuses:
        others = ", ".join(name for name in registry.choices("mixer") if name not in refuses)
        raise UserError(f"algorithm={algorithm} does not accept mixer={mixer}: {refuses[mixer]}. It accepts: {others}.")


def make_algorithm(run: Any, env: TeamEnv, mixer: Mixer) -> Algorithm:
    """Build an algorithm.

    Args:
        run: The configuration of the run; `run.algorithm.name` selects the module.
        env: The environment, for its sizes and its device.
        mixer: The mixer of `run.mixer`.

    Raises:
        UserError: The algorithm does not accept the mixer.
    """
    check_combination(run.algorithm.name, run.mixer.name)
    algorithm: Algorithm = _module(run.algorithm.name).make(run, env, mixer)
    return algorithm
