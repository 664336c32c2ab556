"""Rollouts: one episode in every environment copy, in lockstep."""

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.contract import check_moment
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.timer import Timer

_DONE_CHECK_INTERVAL = {"cpu": 1, "cuda": 8}  # steps; checking whether all copies are done synchronises with a GPU


def rollout(
    env: TeamEnv,
    algorithm: Algorithm,
    storage: EpisodeStorage,
    env_step: int | None,
    generator: torch.Generator,
    timer: Timer,
) -> Tensor:
    """Play one episode in every environment copy.

    Args:
        env: The environment, with N copies.
        algorithm: Chooses the actions.
        storage: Where the N episodes are written; overwritten.
        env_step: Environment steps so far, for exploration schedules; None for evaluation.
        generator: Source of the algorithm's random numbers.
        timer: Measures the parts `simulate` and `act`.

    Returns:
        Undiscounted episode returns, [N].

    Raises:
        ContractError: A tensor of the environment has another shape or dtype than the contract says; storing it would convert it.
    """
    with timer("simulate"):
        observation = env.reset()
    check_moment(env, observation, "reset")
    memory = algorithm.initial_memory(env.num_envs)
    active = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    returns = torch.zeros(env.num_envs, device=env.device)
    storage.lengths.zero_()
    storage.terminated.zero_()
    storage.obs[0], storage.state[0], storage.available_actions[0] = observation
    check_interval = _DONE_CHECK_INTERVAL[env.device.type]
    obs, available = observation.obs, observation.available_actions
    for t in range(env.episode_limit):
        with timer("act"):
            actions, memory = algorithm.act(obs, available, memory, env_step, generator)
        with timer("simulate"):
            step = env.step(actions)
        if t == 0:
            check_moment(env, step, "step")
        obs, available = step.obs, step.available_actions
        reward = torch.where(active, step.reward, 0.0)
        storage.obs[t + 1], storage.state[t + 1], storage.available_actions[t + 1] = obs, step.state, available
        storage.actions[t], storage.reward[t] = actions, reward
        storage.terminated[t] = step.terminated & active
        returns += reward
        storage.lengths += active
        active = active & ~(step.terminated | step.truncated)
        if (t + 1) % check_interval == 0 and not bool(active.any()):
            break
    return returns
