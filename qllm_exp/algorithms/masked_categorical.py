"""A stochastic policy over the actions that are available.

Shapes: [...] any leading dimensions, A actions.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class MaskedCategorical:
    """pi(a) = (1 - floor) exp(z_a) / sum_b exp(z_b) + floor / |available| over the available actions, and 0 for the others.

    Every figure is finite, and so is its gradient, whatever is available: an action that is not has a log-probability that is
    very low, not minus infinity. Where nothing is available (padding), all actions count as equal.

    Args:
        logits: z [..., A]. available: [..., A] bool. floor: the share of the policy that is uniform, 0 to 1.
    """

    def __init__(self, logits: Tensor, available: Tensor, floor: float = 0.0) -> None:
        lowest = -math.sqrt(torch.finfo(logits.dtype).max)  # times a large weight it is still finite
        self.log_probs = F.log_softmax(logits.masked_fill(~available, lowest), -1)  # [..., A]
        if floor > 0:
            possible = available | ~available.any(-1, keepdim=True)
            uniform = possible.to(logits.dtype) / possible.sum(-1, keepdim=True)
            probs = torch.lerp(self.log_probs.exp(), uniform, floor)
            self.log_probs = torch.where(possible, probs, 1.0).log().masked_fill(~possible, lowest)

    @property
    def probs(self) -> Tensor:
        """[..., A], summing to 1."""
        return self.log_probs.exp()

    @property
    def entropy(self) -> Tensor:
        """[...], in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    @property
    def best(self) -> Tensor:
        """[...] int64, the most probable action."""
        return self.log_probs.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """[...] of actions [...] int64."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions [...] int64. With e_a exponential, the largest pi(a) / e_a is a with probability pi(a)."""
        probs = self.probs
        return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)
