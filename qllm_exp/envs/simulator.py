"""What environments share whose simulator computes with numpy and is seeded anew for every episode."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv


class SimulatorEnv(TeamEnv):
    """Copies of such a simulator. Each episode's seed follows from the environment's seed, the copy and its episodes so far."""

    _seed: int
    _episode: int  # episodes started since the environment was seeded

    def seed(self, seed: int) -> None:
        """Restart the sequence of episode seeds."""
        self._seed, self._episode = seed, 0

    def state_dict(self) -> dict[str, Any]:
        """Seed, and number of episodes started since."""
        return {"seed": self._seed, "episode": self._episode}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the sequence of episode seeds from a `state_dict`."""
        self._seed, self._episode = saved["seed"], saved["episode"]

    def _next_seeds(self) -> list[int]:
        """Start an episode: return the simulator's seed in each copy."""
        seeds = [episode_seed(self._seed, copy, self._episode) for copy in range(self.num_envs)]
        self._episode += 1
        return seeds

    def _tensor(self, array: Any) -> Tensor:
        """Copy of an array on the device: the simulator may write to the array again."""
        return torch.tensor(array, device=self.device)


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """Seed of the simulator for one episode of one copy, 31 well-mixed bits.

    Args:
        seed: seed of the environment.
        copy: index of the copy.
        episode: episodes that the copy has started since it was seeded.
    """
    return int(np.random.SeedSequence((seed % 2**64, copy, episode)).generate_state(1)[0]) >> 1
