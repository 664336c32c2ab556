"""Loads the trained team of a finished run."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.experiment import build_algorithm
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.utils.text import excerpt


class Policy:
    """A trained team that acts without exploration.

    Args:
        algorithm: with the trained parameters.
        env: the environment that it plays in.
    """

    def __init__(self, algorithm: Algorithm, env: TeamEnv) -> None:
        self.env = env
        self._algorithm = algorithm
        self._memory = None
        self._generator = torch.Generator(env.device).manual_seed(0)

    def reset(self) -> None:
        """Reset the recurrent state; called before each episode."""
        self._memory = None

    def __call__(self, obs: Tensor, state: Tensor, available: Tensor) -> Tensor:
        """Return the actions of all agents.

        Args:
            obs: [N, n_agents, obs_dim] observations.
            state: [N, state_dim] global states.
            available: [N, n_agents, n_actions] whether an action is available.

        Returns:
            [N, n_agents] indices of actions.
        """
        if self._memory is None:
            self._memory = self._algorithm.initial_memory(obs.shape[0])
        with torch.no_grad():
            actions: Tensor
            actions, self._memory = self._algorithm.act(obs, available, self._memory, None, self._generator)
        return actions


def load_policy(folder: Path, env: TeamEnv, parameters: str = "best") -> Policy:
    """Return the team of a finished run. Arguments and errors are those of `load_algorithm`."""
    return Policy(load_algorithm(folder, env, parameters), env)


def policy_file(directory: RunDirectory) -> Path:
    """Return the file with a finished run's parameters.

    Raises:
        UserError: the run is not finished.
    """
    if not directory.policy.is_file():  # opening a pipe would wait for somebody to write to it
        raise UserError(
            f"{directory.path} has no policy.pt: the run is not finished. "
            f"To resume it: python -m qllm_exp.experiment {directory.path}"
        )
    return directory.policy


def load_algorithm(folder: Path, env: TeamEnv, parameters: str = "best") -> Algorithm:
    """Return the algorithm of a finished run, with its mixer and its trained parameters.

    Args:
        folder: of the run.
        env: of the run's task.
        parameters: 'best' of the run's evaluations, or 'last'.

    Raises:
        UserError: the run is not finished, is for another task than `env`, or was made by a version with other networks.
    """
    directory = RunDirectory(folder)
    run = directory.read_config()
    path = policy_file(directory)
    if (run.env.name, run.env.task) != (env.task.env, env.task.task):
        raise UserError(
            f"{folder} was trained on {run.env.name}/{run.env.task}, not on {env.task.env}/{env.task.task}: "
            f"add env={run.env.name} env.task={run.env.task}."
        )
    algorithm: Algorithm = build_algorithm(run, directory, env)
    try:
        saved = torch.load(path, map_location=env.device, weights_only=True)[parameters]  # executes nothing of the file
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        is_damaged = isinstance(error, RuntimeError | EOFError)  # torch's message names its own source files
        text = str(error).partition("\n")[0] or type(error).__name__
        reason = "it is truncated or damaged" if is_damaged else excerpt(text)
        raise UserError(f"{path} has no parameters of a policy: {reason}. Copy the run directory again.") from None
    try:
        algorithm.load_policy_state_dict(saved)
    except (RuntimeError, KeyError):  # torch raises these for parameters of other names or sizes
        raise UserError(
            f"{path} does not fit the networks of this version of the package. "
            f"Install the version that {directory.path / 'versions.json'} names, or train the run again."
        ) from None
    return algorithm
