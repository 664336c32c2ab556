"""One episode in every copy of the environment, in lockstep."""

import torch
from torch import Tensor

from qllm_exp.algorithms.base import Algorithm
from qllm_exp.envs.base import TeamEnv
from qllm_exp.training.replay import EpisodeStorage
from qllm_exp.training.timer import Timer

_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 8}  # asking whether all copies are done makes a GPU wait


def rollout(
    env: TeamEnv,
    algorithm: Algorithm,
    into: EpisodeStorage,
    env_step: int | None,
    generator: torch.Generator,
    clock: Timer,
) -> Tensor:
    """Fill `into` with one episode per copy and return the episode returns [N], undiscounted.

    Args:
        env_step: environment steps so far, for exploration; None to evaluate.
        clock: books the time of the parts `simulate` and `act`.
    """
    with clock("simulate"):
        seen = env.reset()
    memory = algorithm.initial_memory(env.num_envs)
    active = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    total = torch.zeros(env.num_envs, device=env.device)
    into.lengths.zero_()
    into.terminated.zero_()
    into.obs[0], into.state[0], into.available_actions[0] = seen
    look = _STEPS_BETWEEN_LOOKS[env.device.type]
    obs, available = seen.obs, seen.available_actions
    for t in range(env.episode_limit):
        with clock("act"):
            actions, memory = algorithm.act(obs, available, memory, env_step, generator)
        with clock("simulate"):
            step = env.step(actions)
        obs, available = step.obs, step.available_actions
        reward = torch.where(active, step.reward, 0.0)
        into.obs[t + 1], into.state[t + 1], into.available_actions[t + 1] = obs, step.state, available
        into.actions[t], into.reward[t] = actions, reward
        into.terminated[t] = step.terminated & active
        total += reward
        into.lengths += active
        active = active & ~(step.terminated | step.truncated)
        if (t + 1) % look == 0 and not bool(active.any()):
            break
    return total
