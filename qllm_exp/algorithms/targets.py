"""Value targets over whole episodes. Truncation and termination are kept apart.

Shapes: T steps, B episodes, [...] any further dimensions (an agent axis). `next_value[t]` is the value of the state
after step t; it counts unless step t terminated the task. An episode that was truncated bootstraps from its last state.
"""

import torch
from torch import Tensor


def n_step(reward: Tensor, next_value: Tensor, terminated: Tensor, mask: Tensor, gamma: float, n: int) -> Tensor:
    """G_t = sum_{k < m} gamma^k r_{t+k} + gamma^m V_{t+m}, with m = n, or fewer where the episode ends earlier.

    Args:
        reward, next_value: [T, B, ...]; terminated, mask: [T, B, ...] bool.

    Returns:
        [T, B, ...]; meaningless where mask is False.
    """
    keep = gamma * (~terminated).to(reward.dtype)
    target = reward + keep * next_value
    goes_on = mask[1:]
    for _ in range(n - 1):
        beyond = next_value.clone()
        beyond[:-1] = torch.where(goes_on, target[1:], next_value[:-1])
        target = reward + keep * beyond
    return target


def td_lambda(reward: Tensor, next_value: Tensor, terminated: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """G_t = r_t + gamma [(1 - lam) V_{t+1} + lam G_{t+1}], and r_t + gamma V_{t+1} at the last step of an episode.

    Sutton & Barto (2018), equation 12.18, with the bootstrap dropped where step t terminated.

    Args and returns: as `n_step`.
    """
    keep = gamma * (~terminated).to(reward.dtype)
    target = torch.empty_like(next_value)
    target[-1] = reward[-1] + keep[-1] * next_value[-1]
    for t in range(reward.shape[0] - 2, -1, -1):
        beyond = torch.where(mask[t + 1], torch.lerp(next_value[t], target[t + 1], lam), next_value[t])
        target[t] = reward[t] + keep[t] * beyond
    return target
