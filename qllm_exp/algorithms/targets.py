"""Value targets along whole episodes, with truncation and termination kept apart.

Shapes: T steps, B episodes, [...] any further dimensions (an agent axis).

`next_value[t]` is the value of the state after step t. It is ignored if step t terminated the task. A truncated episode
bootstraps from its last state.
"""

import torch
from torch import Tensor


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
    discount = gamma * (~terminated).to(reward.dtype)
    # G_t = target_t + weight_t G_{t+1}, with weight 0 at the last step. Each round inserts the equation of `span` steps later.
    weight = torch.zeros_like(discount)
    weight[:-1] = lam * discount[:-1] * mask[1:]
    target = (reward + (discount - weight) * next_value).masked_fill_(~mask, 0.0)
    span, steps = 1, len(target)
    while span < steps:
        target[:-span] += weight[:-span] * target[span:]
        weight[:-span] *= weight[span:].clone()
        span *= 2
    return target
