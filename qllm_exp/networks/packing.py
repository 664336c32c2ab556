"""Batches of episodes without their padding, so that networks compute the steps of episodes alone.

Shapes: T steps, B episodes, [...] any further dimensions; M steps of all episodes together.
"""

import torch
from torch import Tensor


class Packing:
    """The steps of the episodes in a batch, in time order, and within a step the longest episodes first.

    Nothing is left out on a GPU: there the time of an update depends on the number of kernel launches, and counting steps would
    synchronise. If nothing is left out, on a GPU or because all episodes are equally long, values stay [T, B, ...].

    Args:
        mask: Whether the step is part of the episode, [T, B] bool; False only after the end of an episode.

    Attributes:
        index: Positions [M] int64 of the packed steps among the T * B of the batch; None if nothing is left out.
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.index: Tensor | None = None
        if mask.is_cuda or bool(mask.all()):
            return
        self._sizes = mask.sum(1)
        order = torch.argsort(mask.sum(0), descending=True, stable=True)
        positions = torch.arange(mask.numel()).view(mask.shape)
        self.index = positions[:, order][mask[:, order]]

    @property
    def sizes(self) -> Tensor:
        """Number of episodes that have each step, [at most T] int64 on the CPU, positive."""
        if self.index is None:
            return torch.full(self.shape[:1], self.shape[1])
        return self._sizes[self._sizes > 0]

    def pack(self, values: Tensor) -> Tensor:
        """Values of the packed steps: [T, B, ...] -> [1, M, ...]; the same tensor if nothing is left out."""
        if self.index is None:
            return values
        return values.flatten(0, 1)[self.index].unsqueeze(0)

    def unpack(self, values: Tensor) -> Tensor:
        """Inverse of `pack`, with 0 in the padding: [1, M, ...] -> [T, B, ...]."""
        if self.index is None:
            return values
        padded = values.new_zeros(self.shape.numel(), *values.shape[2:])
        return padded.index_copy(0, self.index, values[0]).view(*self.shape, *values.shape[2:])
