"""Running mean and variance, for the standardisation of rewards and of values."""

import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance of everything seen so far (Chan et al. 1979, merging of batches), in float64."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros((), dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)  # sum of squared deviations

    def update(self, values: Tensor, mask: Tensor) -> None:
        """Take in the values where mask is True; both of one shape."""
        weight = mask.double()
        count = weight.sum()
        mean = (values * weight).sum() / count.clamp(min=1)
        square = ((values - mean).square() * weight).sum()
        total = (self.count + count).clamp(min=1)
        delta = mean - self.mean
        self.mean = self.mean + delta * count / total
        self.square = self.square + square + delta.square() * self.count * count / total
        self.count = self.count + count

    def standardise(self, values: Tensor) -> Tensor:
        """(values - mean) / standard deviation, in the dtype of values; a deviation of 0 counts as 1."""
        return (values - self.mean.to(values.dtype)) / self._deviation().to(values.dtype)

    def restore(self, values: Tensor) -> Tensor:
        """What was standardised to these values."""
        return values * self._deviation().to(values.dtype) + self.mean.to(values.dtype)

    def _deviation(self) -> Tensor:
        deviation = (self.square / self.count.clamp(min=1)).sqrt()
        return torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        device = self.count.device
        self.count, self.mean, self.square = (saved[k].to(device) for k in ("count", "mean", "square"))
