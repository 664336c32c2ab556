"""Checkpoints of everything, cheap with a large replay buffer, and safe against a kill at any moment.

The buffer is kept in `episodes.bin`, a ring of records twice as long as the buffer. A checkpoint appends only the episodes
that are new since the one before, to the half of the ring that the one before does not need, and then replaces `state.pt`
by renaming: until that rename the older checkpoint is whole. On disk there is never more than twice the buffer.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qllm_exp.training.replay import ReplayBuffer

_CHUNK_BYTES = 32 << 20


class CheckpointStore:
    """Writes and reads the checkpoint of one run.

    Args:
        folder: where the two files go; made at the first save.
        buffer: the run's replay buffer.
        every_s: seconds between checkpoints, at least.
        max_share: largest share of the run's time; after a slow checkpoint the next one waits accordingly.
    """

    def __init__(self, folder: Path, buffer: ReplayBuffer, every_s: float, max_share: float) -> None:
        self.folder, self.buffer, self.every_s, self.max_share = folder, buffer, every_s, max_share
        self.ring = 2 * buffer.capacity
        self._position, self._saved = 0, 0  # next record to write; episodes saved ever
        self._last, self._cost = time.monotonic(), 0.0
        self.seconds = 0.0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self.every_s, self._cost / self.max_share if self.max_share else float("inf"))
        return time.monotonic() - self._last >= wait

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint: `state` holds tensors, numbers, strings, and lists and dicts of them."""
        begin = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        position = self._append_new_episodes()
        b = self.buffer
        replay = {"position": position, "next": b.next, "size": b.size, "added": b.added, "record": b.record_size()}
        part = self.folder / "state.pt.part"
        with open(part, "wb") as file:
            torch.save({"replay": replay, "run": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.folder / "state.pt")
        directory = os.open(self.folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self._position, self._saved = position, b.added
        self._last = time.monotonic()
        self._cost = self._last - begin
        self.seconds += self._cost

    def _append_new_episodes(self) -> int:
        size = self.buffer.record_size()
        slots = self.buffer.latest(min(self.buffer.added - self._saved, self.buffer.size))
        position, chunk = self._position, max(1, _CHUNK_BYTES // size)
        file = os.open(self.folder / "episodes.bin", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while slots:
                count = min(len(slots), chunk, self.ring - position)
                data = memoryview(self.buffer.records(slots[:count]).tobytes())
                offset = position * size
                while data:
                    written = os.pwrite(file, data, offset)
                    data, offset = data[written:], offset + written
                slots, position = slots[count:], (position + count) % self.ring
            os.fsync(file)
        finally:
            os.close(file)
        return position

    def load(self) -> dict[str, Any] | None:
        """Fill the buffer from the last checkpoint and return its `state`; None when there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        saved = torch.load(path, map_location="cpu", weights_only=True)
        replay, b = saved["replay"], self.buffer
        size = b.record_size()
        if replay["record"] != size:
            raise RuntimeError(f"{path} holds episodes of {replay['record']} bytes; this run's have {size}")
        b.restore_counters(replay["next"], replay["size"], replay["added"])
        slots, chunk = b.latest(b.size), max(1, _CHUNK_BYTES // size)
        position = (replay["position"] - b.size) % self.ring
        with open(self.folder / "episodes.bin", "rb") as file:
            while slots:
                count = min(len(slots), chunk, self.ring - position)
                file.seek(position * size)
                records = np.frombuffer(file.read(count * size), np.uint8).reshape(count, size)
                b.load_records(records, slots[:count])
                slots, position = slots[count:], (position + count) % self.ring
        self._position, self._saved = replay["position"], replay["added"]
        state: dict[str, Any] = saved["run"]
        return state

    def remove(self) -> None:
        """Delete the files: the run is over."""
        for name in ("state.pt", "state.pt.part", "episodes.bin"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
