"""Replay buffer of whole episodes: preallocated, time first, on the device of the environment.

Shapes: T = episode_limit, C episodes of capacity, n agents, A actions.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.config.schema import TrainConfig
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.utils.memory import Memory, size_text


class EpisodeStorage:
    """Preallocated memory of episodes, one column per episode.

    Args:
        env: The environment, for its sizes and its device.
        count: Number of episodes.
        device: Device of the tensors; None: that of the environment.

    Attributes:
        obs: [T + 1, count, n, obs_dim].
        state: [T + 1, count, state_dim].
        available_actions: [T + 1, count, n, A] bool.
        actions: [T, count, n], uint8 or int16.
        reward: [T, count].
        terminated: [T, count] bool.
        lengths: Number of steps of each episode, [count] int64.
    """

    def __init__(self, env: TeamEnv, count: int, device: torch.device | None = None) -> None:
        limit, n, device = env.episode_limit, env.n_agents, device or env.device
        action_dtype = torch.uint8 if env.n_actions < 256 else torch.int16
        self.count, self.limit = count, limit
        self.obs = torch.zeros(limit + 1, count, n, env.obs_dim, device=device)
        self.state = torch.zeros(limit + 1, count, env.state_dim, device=device)
        self.available_actions = torch.zeros(limit + 1, count, n, env.n_actions, dtype=torch.bool, device=device)
        self.actions = torch.zeros(limit, count, n, dtype=action_dtype, device=device)
        self.reward = torch.zeros(limit, count, device=device)
        self.terminated = torch.zeros(limit, count, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)

    @property
    def fields(self) -> tuple[Tensor, ...]:
        """All tensors except the lengths, each [time, count, ...]."""
        return (self.obs, self.state, self.available_actions, self.actions, self.reward, self.terminated)

    def mask(self) -> Tensor:
        """Whether each step is part of its episode, [T, count] bool."""
        return torch.arange(self.limit, device=self.lengths.device).unsqueeze(1) < self.lengths

    def nbytes(self) -> int:
        """Size of all tensors except the lengths, in bytes."""
        return sum(field.numel() * field.element_size() for field in self.fields)


class EpisodeSize(NamedTuple):
    """Size of a stored episode.

    Attributes:
        nbytes: bytes.
        text: what they are for, for messages.
    """

    nbytes: int
    text: str


def episode_size(env: TeamEnv) -> EpisodeSize:
    """Return the size of a stored episode of an environment. Nothing is allocated."""
    numbers = f"{env.n_agents} observations of {env.obs_dim:,} numbers and a state of {env.state_dim:,}"
    return EpisodeSize(
        EpisodeStorage(env, 1, torch.device("meta")).nbytes(),
        f"{env.episode_limit + 1} steps with {numbers}",
    )


def check_memory(size: EpisodeSize, num_envs: int, train: TrainConfig, on_policy: bool, memory: Memory | None) -> None:
    """Raise UserError if the episodes that a run stores do not fit into memory.

    Args:
        size: Size of an episode.
        num_envs: Number of environment copies.
        train: The `train` group.
        on_policy: Whether the algorithm stores the last rollout only.
        memory: Memory of the machine that trains the run; None if it is not known.
    """
    key, capacity = "train.buffer_episodes", train.buffer_episodes
    if on_policy:
        key, capacity = "env.num_envs", num_envs
    needed = size.nbytes * (capacity + num_envs)
    if memory is None or needed <= memory.size:
        return
    fitting = memory.size // size.nbytes - num_envs if not on_policy else memory.size // (2 * size.nbytes)
    advice = f"lower {key} to {fitting:,} or less, or " if fitting > 0 else ""
    raise UserError(
        f"{key}={capacity} does not fit into memory: an episode ({size.text}) takes {size_text(size.nbytes)}, and all of "
        f"them {size_text(needed)}, while {memory.place} has {size_text(memory.size)} available. To fit, {advice}lower "
        "env.episode_limit or the size of the observations."
    )


class ReplayBuffer:
    """The C most recent episodes.

    Args:
        env: The environment, for its sizes and its device.
        capacity: Number of episodes C.

    Attributes:
        episodes: The episodes; the columns are the slots of a ring.
        next: Slot of the next episode.
        size: Number of episodes in the buffer.
        added: Number of episodes ever added.
    """

    def __init__(self, env: TeamEnv, capacity: int) -> None:
        self.capacity = capacity
        self.episodes = EpisodeStorage(env, capacity)
        self.next, self.size, self.added = 0, 0, 0
        # A copy of the lengths on the CPU, to cut a batch to its longest episode without waiting for a GPU.
        self._host_lengths = np.zeros(capacity, dtype=np.int64)

    def add(self, new: EpisodeStorage) -> None:
        """Copy all episodes of `new` into the buffer, over the oldest episodes."""
        lengths = new.lengths.cpu().numpy()
        first = max(0, new.count - self.capacity)
        source = first
        while source < new.count:
            count = min(new.count - source, self.capacity - self.next)
            new_slots, slots = slice(source, source + count), slice(self.next, self.next + count)
            for field, new_field in zip(self.episodes.fields, new.fields, strict=True):
                field[:, slots] = new_field[:, new_slots]
            self.episodes.lengths[slots] = new.lengths[new_slots]
            self._host_lengths[slots] = lengths[new_slots]
            self.next = (self.next + count) % self.capacity
            source += count
        self.added += new.count
        self.size = min(self.capacity, self.size + new.count - first)

    def sample(self, count: int, generator: torch.Generator) -> EpisodeBatch:
        """Sample `count` distinct episodes uniformly; all of them if the buffer holds fewer.

        Args:
            count: Number of episodes.
            generator: Source of random numbers, on the CPU.
        """
        if count >= self.size:
            return self.batch(torch.arange(self.size))
        return self.batch(torch.randperm(self.size, generator=generator)[:count])

    def batch(self, slots: Tensor) -> EpisodeBatch:
        """The episodes in some slots, cut to the longest of them.

        Args:
            slots: [count] int64, on the CPU.
        """
        steps = int(self._host_lengths[slots.numpy()].max())
        episodes = self.episodes
        slots = slots.to(episodes.lengths.device, non_blocking=True)  # else the host waits for the GPU's last update
        lengths = episodes.lengths[slots]
        return EpisodeBatch(
            obs=episodes.obs[: steps + 1].index_select(1, slots),
            state=episodes.state[: steps + 1].index_select(1, slots),
            available_actions=episodes.available_actions[: steps + 1].index_select(1, slots),
            actions=episodes.actions[:steps].index_select(1, slots).long(),
            reward=episodes.reward[:steps].index_select(1, slots),
            terminated=episodes.terminated[:steps].index_select(1, slots),
            mask=torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths,
        )

    # Episodes as records of equal size, for the checkpoint

    def record_size(self) -> int:
        """Size of the record of one episode, in bytes."""
        return 8 + sum(field[:, 0].numel() * field.element_size() for field in self.episodes.fields)

    def latest(self, count: int) -> list[int]:
        """Slots of the `count` most recent episodes, oldest first."""
        return [(self.next - count + i) % self.capacity for i in range(count)]

    def records(self, slots: list[int]) -> np.ndarray[Any, Any]:
        """Records of the episodes in some slots, [len(slots), record_size] uint8."""
        index = torch.tensor(slots, dtype=torch.int64, device=self.episodes.lengths.device)
        parts = [self.episodes.lengths[index].cpu().numpy().view(np.uint8).reshape(len(slots), -1)]
        for field in self.episodes.fields:
            values = field.index_select(1, index).transpose(0, 1).contiguous().cpu().numpy()
            parts.append(values.view(np.uint8).reshape(len(slots), -1))
        return np.concatenate(parts, 1)

    def load_records(self, records: np.ndarray[Any, Any], slots: list[int]) -> None:
        """Restore records of `records` into slots.

        Args:
            records: [len(slots), record_size] uint8.
            slots: Slots to overwrite.
        """
        device = self.episodes.lengths.device
        index = torch.tensor(slots, dtype=torch.int64, device=device)
        lengths = records[:, :8].copy().reshape(-1).view(np.int64)
        self.episodes.lengths[index] = torch.from_numpy(lengths).to(device)
        self._host_lengths[slots] = lengths
        start = 8
        for field in self.episodes.fields:
            shape = (len(slots), field.shape[0], *field.shape[2:])
            width = int(np.prod(shape[1:])) * field.element_size()
            field_bytes = torch.from_numpy(records[:, start : start + width].copy().reshape(-1))
            values = field_bytes.view(field.dtype).view(shape)
            field.index_copy_(1, index, values.transpose(0, 1).to(device))
            start += width

    def restore_counters(self, next_slot: int, size: int, added: int) -> None:
        """Restore `next`, `size` and `added` from a checkpoint."""
        self.next, self.size, self.added = next_slot, size, added


class Experience:
    """A replay buffer in the form that algorithms see (algorithms/base.py).

    Args:
        buffer: The replay buffer.
        rollout_episodes: Episodes of one rollout.
        generator: Source of random numbers for sampling, on the CPU.
    """

    def __init__(self, buffer: ReplayBuffer, rollout_episodes: int, generator: torch.Generator) -> None:
        self._buffer, self._rollout_episodes, self._generator = buffer, rollout_episodes, generator

    def sample(self, count: int) -> EpisodeBatch:
        """Sample `count` distinct stored episodes uniformly."""
        return self._buffer.sample(count, self._generator)

    def latest(self, count: int) -> EpisodeBatch:
        """The `count` most recent episodes, oldest first."""
        slots = self._buffer.latest(min(count, self._buffer.size))
        return self._buffer.batch(torch.tensor(slots))

    def last_rollout(self) -> EpisodeBatch:
        """The episodes of the last rollout."""
        return self.latest(self._rollout_episodes)
