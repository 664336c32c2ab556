"""The team that a finished run has trained, to be played with."""

from pathlib import Path

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.experiment import algorithm_of
from qllm_exp.runs.run_directory import RunDirectory


class Policy:
    """Acts without exploration: (obs [N, n, obs_dim], state, available actions [N, n, A]) -> actions [N, n]."""

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self._algorithm, self._memory = algorithm, None
        self._generator = torch.Generator(device).manual_seed(0)

    def reset(self) -> None:
        """Forget the episode; called before the next one starts."""
        self._memory = None

    def __call__(self, obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        if self._memory is None:
            self._memory = self._algorithm.initial_memory(obs.shape[0])
        with torch.no_grad():
            actions: Tensor
            actions, self._memory = self._algorithm.act(obs, available, self._memory, None, self._generator)
        return actions


def load_policy(folder: Path, env: TeamEnv, which: str = "best") -> Policy:
    """The team of a finished run, with its 'best' or its 'last' parameters; UserError as `load_algorithm`."""
    return Policy(load_algorithm(folder, env, which), env.device)


def kept_policy(directory: RunDirectory) -> Path:
    """The file with a finished run's parameters; UserError where the run is not finished."""
    if not directory.policy.exists():
        raise UserError(
            f"{directory.path} has no policy.pt: the run is not finished. "
            f"To go on with it: python -m qllm_exp.experiment {directory.path}"
        )
    return directory.policy


def load_algorithm(folder: Path, env: TeamEnv, which: str = "best") -> Algorithm:
    """The algorithm of a finished run and its mixer, with the parameters that the run has kept.

    Args:
        which: 'best' of the run's evaluations, or 'last'.

    Raises:
        UserError: the run is not finished, is for another task than `env`, or was made by a version with other networks.
    """
    directory = RunDirectory(folder)
    run = directory.read_config()
    kept = kept_policy(directory)
    if (run.env.name, run.env.task) != (env.task.env, env.task.task):
        raise UserError(
            f"{folder} was trained on {run.env.name}/{run.env.task}, not on {env.task.env}/{env.task.task}: "
            f"add env={run.env.name} env.task={run.env.task}."
        )
    algorithm: Algorithm = algorithm_of(run, directory, env)
    saved = torch.load(kept, map_location=env.device, weights_only=True)[which]
    try:
        algorithm.load_policy_state_dict(saved)
    except (RuntimeError, KeyError):  # torch's words for parameters that are of other names or sizes
        raise UserError(
            f"{kept} does not fit the networks that this version of the package makes: the run was made by another one, which "
            f"{directory.path / 'versions.json'} names. Use that one, or run it again."
        ) from None
    return algorithm
