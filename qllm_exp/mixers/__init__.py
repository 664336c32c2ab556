"""Mixers, selected by name: `mixer.name=qmix` is the module `qllm_exp.mixers.qmix`; any other name is a user's own module.

Each module has a function `make(config, env) -> Mixer`. `config` is the `mixer` group of the configuration; `env` has the sizes,
the state layout and the task.
"""

from typing import Any

from qllm_exp.config import registry
from qllm_exp.envs.base import TeamEnv
from qllm_exp.mixers.base import Mixer

__all__ = ["Mixer", "make_mixer"]


def make_mixer(config: Any, env: TeamEnv) -> Mixer:
    """Build a mixer.

    Args:
        config: The `mixer` group; `config.name` selects the module.
        env: The environment, for its sizes, state layout and task.
    """
    mixer: Mixer = registry.find("mixer", config.name).make(config, env)
    return mixer
