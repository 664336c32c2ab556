"""A stochastic policy over the available actions.

Shapes: [...] any leading dimensions, A actions.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class MaskedCategorical:
    """Categorical distribution over the available actions, optionally mixed with a uniform one.

    pi(a) = (1 - floor) exp(z_a) / sum_b exp(z_b) + floor / |available| for available actions, and 0 for all others.

    All values and gradients are finite, whatever is available: the log-probability of an unavailable action is very low, not
    minus infinity. If no action is available (padding), all actions are equally probable.

    Args:
        logits: z, [..., A].
        available: [..., A] bool.
        floor: Share of the uniform distribution, 0 to 1.

    Attributes:
        log_probs: Log-probabilities, [..., A].
    """

    def __init__(self, logits: Tensor, available: Tensor, floor: float = 0.0) -> None:
        lowest = -math.sqrt(torch.finfo(logits.dtype).max)  # still finite after multiplication by a large weight
        self.log_probs = F.log_softmax(logits.masked_fill(~available, lowest), -1)
        if floor > 0:
            possible = available | ~available.any(-1, keepdim=True)
            uniform = possible.to(logits.dtype) / possible.sum(-1, keepdim=True)
            probs = torch.lerp(self.log_probs.exp(), uniform, floor)
            self.log_probs = torch.where(possible, probs, 1.0).log().masked_fill(~possible, lowest)

    @property
    def probs(self) -> Tensor:
        """Probabilities [..., A], which sum to 1."""
        return self.log_probs.exp()

    @property
    def entropy(self) -> Tensor:
        """Entropy [...] in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    @property
    def best(self) -> Tensor:
        """Most probable action, [...] int64."""
        return self.log_probs.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities [...] of actions [...] int64."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Sample actions [...] int64.

        For independent exponential noise e, argmax_a pi(a) / e_a is action a with probability pi(a).
        """
        probs = self.probs
        return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)
