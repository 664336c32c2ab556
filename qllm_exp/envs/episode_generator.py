"""Random numbers of environments in which steps draw as well as starts."""

from typing import Any

import torch
from torch import Tensor


class EpisodeGenerator:
    """A generator that is seeded anew for every episode, so that no start depends on the length of an earlier episode.

    Without it, methods would be evaluated on different episodes, since the steps of an evaluation draw from it too.

    Args:
        device: device of the random numbers.

    Attributes:
        current: the generator of the current episode.
    """

    def __init__(self, device: torch.device) -> None:
        self._seeds = torch.Generator()
        self.current = torch.Generator(device)

    def seed(self, seed: int) -> None:
        """Restart the seeds of the episodes."""
        self._seeds.manual_seed(seed)

    def start(self) -> torch.Generator:
        """Return the generator at the start of the next episode."""
        return self.current.manual_seed(int(torch.randint(2**31, (), generator=self._seeds)))

    def random(self, *shape: int) -> Tensor:
        """Random numbers from 0 to 1 of the current episode, [*shape]."""
        return torch.rand(shape, generator=self.current, device=self.current.device)

    def state_dict(self) -> dict[str, Any]:
        """State that the episodes after the next `start` depend on."""
        return {"seeds": self._seeds.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a `state_dict` at the next `start`."""
        self._seeds.set_state(saved["seeds"])
