"""Running mean and variance, for the standardisation of rewards and values."""

import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance of all values so far, in float64 (merging of batches by Chan et al. 1979).

    Args:
        device: Device of the moments.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros((), dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)  # sum of squared deviations
        self._deviation: Tensor | None = None  # since the last change of the moments

    def update(self, values: Tensor, mask: Tensor) -> None:
        """Include new values.

        Args:
            values: Tensor of any shape.
            mask: Which values count; bool, of the same shape.
        """
        weight = mask.double()
        count = weight.sum()
        mean = (values * weight).sum() / count.clamp(min=1)
        square = ((values - mean).square() * weight).sum()
        total = (self.count + count).clamp(min=1)
        delta = mean - self.mean
        self.mean = self.mean + delta * count / total
        self.square = self.square + square + delta.square() * self.count * count / total
        self.count = self.count + count
        self._deviation = None

    def standardise(self, values: Tensor) -> Tensor:
        """(values - mean) / standard deviation, in the dtype of `values`. A deviation of 0 is replaced by 1."""
        return (values - self.mean.to(values.dtype)) / self.deviation.to(values.dtype)

    def restore(self, values: Tensor) -> Tensor:
        """Inverse of `standardise`."""
        return values * self.deviation.to(values.dtype) + self.mean.to(values.dtype)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, a scalar; 1 in place of 0."""
        if self._deviation is None:
            deviation = (self.square / self.count.clamp(min=1)).sqrt()
            self._deviation = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
        return self._deviation

    def state_dict(self) -> dict[str, Tensor]:
        """The moments, for a checkpoint."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        device = self.count.device
        self.count, self.mean, self.square = (saved[key].to(device) for key in ("count", "mean", "square"))
        self._deviation = None
