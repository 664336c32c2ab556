"""Mixers, found by name: `mixer.name=qmix` is the module `qllm_exp.mixers.qmix`; any other name is a module of the user's own.

Each module has `make(config, env) -> Mixer`: the `mixer` group of the configuration, and the environment whose sizes, state layout
and task it is for.
"""

from typing import Any

from qllm_exp.config import registry
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer

__all__ = ["Mixer", "make_mixer"]


def make_mixer(config: Any, env: TeamEnv) -> Mixer:
    """Build the mixer that `config.name` names."""
    mixer: Mixer = registry.find("mixer", config.name).make(config, env)
    return mixer
