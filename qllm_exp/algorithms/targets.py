"""Value targets along whole episodes, with truncation and termination kept apart.

Shapes: T steps, B episodes, [...] any further dimensions (an agent axis).

`next_value[t]` is the value of the state after step t. It is ignored if step t terminated the task. A truncated episode
bootstraps from its last state.
"""

import torch
from torch import Tensor

from qllm_exp.networks import gru_kernel


def n_step(reward: Tensor, next_value: Tensor, terminated: Tensor, mask: Tensor, gamma: float, n: int) -> Tensor:
    """n-step returns.

    G_t = sum_{k < m} gamma^k r_{t+k} + gamma^m V_{t+m}, with m = n, or fewer if the episode ends earlier.

    Args:
        reward: [T, B, ...].
        next_value: Values of the next states, [T, B, ...].
        terminated: [T, B, ...] bool.
        mask: Whether the step is part of the episode, [T, B, ...] bool.
        gamma: Discount factor.
        n: Number of steps, at least 1.

    Returns:
        [T, B, ...]; 0 where `mask` is False.
    """
    discount = gamma * (~terminated).to(reward.dtype)
    target = reward + discount * next_value
    continues = mask[1:]
    for _ in range(n - 1):
        bootstrap = next_value.clone()
        bootstrap[:-1] = torch.where(continues, target[1:], next_value[:-1])
        target = reward + discount * bootstrap
    return target.masked_fill(~mask, 0.0)


def td_lambda(reward: Tensor, next_value: Tensor, terminated: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """TD(lambda) returns (Sutton and Barto 2018, equation 12.18), without bootstrap where step t terminated the task.

    G_t = r_t + gamma [(1 - lam) V_{t+1} + lam G_{t+1}], and r_t + gamma V_{t+1} at the last step of an episode.

    Args:
        reward: [T, B, ...].
        next_value: Values of the next states, [T, B, ...].
        terminated: [T, B, ...] bool.
        mask: Whether the step is part of the episode, [T, B, ...] bool.
        gamma: Discount factor.
        lam: Lambda, 0 to 1.

    Returns:
        [T, B, ...]; 0 where `mask` is False.
    """
    if (compiled := gru_kernel.td_lambda(reward, next_value, terminated, mask, gamma, lam)) is not None:
        return compiled
    discount = gamma * (~terminated).to(reward.dtype)
    weight = lam * discount
    weight[:-1].mul_(mask[1:])
    weight[-1] = 0.0
    target = torch.addcmul(reward, discount - weight, next_value).masked_fill_(~mask, 0.0)
    # Now G_t = target_t + weight_t G_{t+1}: recursive doubling, in which every round spans twice the steps of the one before.
    # Few large operations take the place of one small one per step.
    span = 1
    while span < len(target):
        target[:-span].add_(weight[: len(target) - span] * target[span:])
        weight = weight[:-span] * weight[span:]
        span *= 2
    return target
