"""Replay buffer of whole episodes: preallocated, time first, on the device of the environment.

Shapes: T = episode_limit, C episodes of capacity, n agents, A actions.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.envs.base import TeamEnv


class EpisodeStorage:
    """Room for `count` episodes. One column per episode; `lengths` says how many of its steps happened."""

    def __init__(self, env: TeamEnv, count: int) -> None:
        t, n, device = env.episode_limit, env.n_agents, env.device
        self.count, self.limit = count, t
        self.obs = torch.zeros(t + 1, count, n, env.obs_dim, device=device)
        self.state = torch.zeros(t + 1, count, env.state_dim, device=device)
        self.available_actions = torch.zeros(t + 1, count, n, env.n_actions, dtype=torch.bool, device=device)
        self.actions = torch.zeros(
            t, count, n, dtype=torch.uint8 if env.n_actions < 256 else torch.int16, device=device
        )
        self.reward = torch.zeros(t, count, device=device)
        self.terminated = torch.zeros(t, count, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)

    @property
    def fields(self) -> tuple[Tensor, ...]:
        """Everything of an episode but its length, each [time, count, ...]."""
        return (self.obs, self.state, self.available_actions, self.actions, self.reward, self.terminated)

    def mask(self) -> Tensor:
        """[T, count] bool, the steps that happened."""
        return torch.arange(self.limit, device=self.lengths.device).unsqueeze(1) < self.lengths

    def nbytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.fields)


class ReplayBuffer:
    """The latest C episodes.

    Args:
        env: gives sizes and device. capacity: C.
    """

    def __init__(self, env: TeamEnv, capacity: int) -> None:
        self.capacity = capacity
        self.episodes = EpisodeStorage(env, capacity)
        self.next, self.size = 0, 0
        self.added = 0  # episodes ever added
        self._host_lengths = np.zeros(capacity, dtype=np.int64)  # so that cutting a batch to its longest costs no sync

    def add(self, new: EpisodeStorage) -> None:
        """Store copies of all episodes of `new`, over the oldest."""
        lengths = new.lengths.cpu().numpy()
        first = max(0, new.count - self.capacity)
        done = first
        while done < new.count:
            part = min(new.count - done, self.capacity - self.next)
            for to, source in zip(self.episodes.fields, new.fields, strict=True):
                to[:, self.next : self.next + part] = source[:, done : done + part]
            self.episodes.lengths[self.next : self.next + part] = new.lengths[done : done + part]
            self._host_lengths[self.next : self.next + part] = lengths[done : done + part]
            self.next = (self.next + part) % self.capacity
            done += part
        self.added += new.count
        self.size = min(self.capacity, self.size + new.count - first)

    def sample(self, count: int, generator: torch.Generator) -> EpisodeBatch:
        """`count` different episodes, uniformly, cut to the longest of them. `generator` is on the CPU."""
        index = torch.randperm(self.size, generator=generator)[:count] if count < self.size else torch.arange(self.size)
        return self.batch(index)

    def batch(self, index: Tensor) -> EpisodeBatch:
        """The episodes in slots [count] int64 (on the CPU), cut to the longest of them."""
        longest = int(self._host_lengths[index.numpy()].max())
        e = self.episodes
        index = index.to(e.lengths.device)
        lengths = e.lengths[index]

        def pick(values: Tensor, steps: int) -> Tensor:
            return values[:steps].index_select(1, index)

        return EpisodeBatch(
            obs=pick(e.obs, longest + 1),
            state=pick(e.state, longest + 1),
            available_actions=pick(e.available_actions, longest + 1),
            actions=pick(e.actions, longest).long(),
            reward=pick(e.reward, longest),
            terminated=pick(e.terminated, longest),
            mask=torch.arange(longest, device=lengths.device).unsqueeze(1) < lengths,
        )

    # EpisodeStorage as records of equal size, for the checkpoint

    def record_size(self) -> int:
        """Bytes of one episode."""
        return 8 + sum(f[:, 0].numel() * f.element_size() for f in self.episodes.fields)

    def latest(self, count: int) -> list[int]:
        """Slots of the latest `count` episodes, oldest first."""
        return [(self.next - count + i) % self.capacity for i in range(count)]

    def records(self, slots: list[int]) -> np.ndarray[Any, Any]:
        """[len(slots), record_size] uint8."""
        index = torch.tensor(slots, dtype=torch.int64, device=self.episodes.lengths.device)
        parts = [self.episodes.lengths[index].cpu().numpy().view(np.uint8).reshape(len(slots), -1)]
        for field in self.episodes.fields:
            episodes = field.index_select(1, index).transpose(0, 1).contiguous().cpu().numpy()
            parts.append(episodes.view(np.uint8).reshape(len(slots), -1))
        return np.concatenate(parts, 1)

    def load_records(self, records: np.ndarray[Any, Any], slots: list[int]) -> None:
        """Put back what `records` gave, into the given slots."""
        device = self.episodes.lengths.device
        index = torch.tensor(slots, dtype=torch.int64, device=device)
        lengths = records[:, :8].copy().reshape(-1).view(np.int64)
        self.episodes.lengths[index] = torch.from_numpy(lengths).to(device)
        self._host_lengths[slots] = lengths
        start = 8
        for field in self.episodes.fields:
            shape = (len(slots), field.shape[0], *field.shape[2:])
            width = int(np.prod(shape[1:])) * field.element_size()
            raw = torch.from_numpy(records[:, start : start + width].copy().reshape(-1))
            values = raw.view(field.dtype).view(shape)
            field.index_copy_(1, index, values.transpose(0, 1).to(device))
            start += width

    def restore_counters(self, next_slot: int, size: int, added: int) -> None:
        self.next, self.size, self.added = next_slot, size, added


class Experience:
    """A replay buffer as algorithms see it.

    Args:
        rollout: episodes of a rollout. generator: of what is sampled; on the CPU.
    """

    def __init__(self, buffer: ReplayBuffer, rollout: int, generator: torch.Generator) -> None:
        self._buffer, self._rollout, self._generator = buffer, rollout, generator

    def sample(self, count: int) -> EpisodeBatch:
        return self._buffer.sample(count, self._generator)

    def latest(self, count: int) -> EpisodeBatch:
        return self._buffer.batch(torch.tensor(self._buffer.latest(min(count, self._buffer.size))))

    def fresh(self) -> EpisodeBatch:
        return self.latest(self._rollout)
