"""Checkpoints of a whole run, cheap with a large replay buffer and safe against a kill at any moment.

The replay buffer is stored in `episodes.bin`, a ring of records with twice the capacity of the buffer. A checkpoint appends only
the episodes added since the previous checkpoint, to the half of the ring that the previous one does not need. Then it replaces
`state.pt` by an atomic rename. Until that rename the previous checkpoint is complete. On disk there is never more than twice the
buffer.
"""

import contextlib
import io
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qllm_exp.errors import UserError
from qllm_exp.training.replay import ReplayBuffer

_CHUNK_BYTES = 32 << 20


def to_bytes(content: Any) -> bytes:
    """Return what `torch.save` writes. It writes into memory here: torch reports a full disk as an internal error of its own."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class CheckpointStore:
    """Writes and reads the checkpoint of one run.

    Args:
        folder: Folder of the two files; created by the first `save`.
        buffer: The run's replay buffer.
        every_s: Minimum number of seconds between checkpoints.
        max_share: Maximum share of the run's time to spend on checkpoints; after a slow checkpoint the next one waits longer.

    Attributes:
        ring: Capacity of the ring, in records.
        seconds: Seconds spent on checkpoints so far.
    """

    def __init__(self, folder: Path, buffer: ReplayBuffer, every_s: float, max_share: float) -> None:
        self.folder, self.buffer, self.every_s, self.max_share = folder, buffer, every_s, max_share
        self.ring = 2 * buffer.capacity
        self._position = 0  # record of the ring to write next
        self._saved_episodes = 0  # episodes saved ever
        self._last_save, self._last_duration = time.monotonic(), 0.0
        self.seconds = 0.0

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        pause = self._last_duration / self.max_share if self.max_share else float("inf")
        return time.monotonic() - self._last_save >= max(self.every_s, pause)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            state: State of the run without the replay buffer: tensors, numbers, strings, and lists and dicts of them.

        Raises:
            OSError: The disk is full, or the run directory was removed; it is not created again.
        """
        start = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        position = self._append_new_episodes()
        buffer = self.buffer
        replay = {
            "position": position,
            "next": buffer.next,
            "size": buffer.size,
            "added": buffer.added,
            "record": buffer.record_size(),
        }
        part = self.folder / "state.pt.part"
        try:
            with open(part, "wb") as file:
                file.write(to_bytes({"replay": replay, "run": state}))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # on a full disk this leaves room for the status of the run
                part.unlink()
            raise
        os.replace(part, self.folder / "state.pt")
        directory = os.open(self.folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self._position, self._saved_episodes = position, buffer.added
        self._last_save = time.monotonic()
        self._last_duration = self._last_save - start
        self.seconds += self._last_duration

    def _append_new_episodes(self) -> int:
        """Append the episodes added since the previous checkpoint and return the next position in the ring."""
        size = self.buffer.record_size()
        slots = self.buffer.latest(min(self.buffer.added - self._saved_episodes, self.buffer.size))
        position, chunk = self._position, max(1, _CHUNK_BYTES // size)
        file = os.open(self.folder / "episodes.bin", os.O_RDWR | os.O_CREAT, 0o666)
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
        """Restore the buffer from the last checkpoint.

        Returns:
            The `state` that was saved; None if there is no checkpoint.

        Raises:
            UserError: The file of the checkpoint is damaged.
            RuntimeError: The episodes of the checkpoint have another size than those of this run.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):  # torch raises these for a truncated file
            raise UserError(
                f"{path} is truncated or damaged. Copy the run directory again, or delete {self.folder} to restart the run "
                "from the beginning."
            ) from None
        replay, buffer = saved["replay"], self.buffer
        size = buffer.record_size()
        if replay["record"] != size:
            raise RuntimeError(
                f"{path} holds episodes of {replay['record']} bytes, but those of this run have {size}. "
                f"The environment has changed since; delete {self.folder} to restart the run from the beginning."
            )
        buffer.restore_counters(replay["next"], replay["size"], replay["added"])
        slots, chunk = buffer.latest(buffer.size), max(1, _CHUNK_BYTES // size)
        position = (replay["position"] - buffer.size) % self.ring
        with open(self.folder / "episodes.bin", "rb") as file:
            while slots:
                count = min(len(slots), chunk, self.ring - position)
                file.seek(position * size)
                records = np.frombuffer(file.read(count * size), np.uint8).reshape(count, size)
                buffer.load_records(records, slots[:count])
                slots, position = slots[count:], (position + count) % self.ring
        self._position, self._saved_episodes = replay["position"], replay["added"]
        state: dict[str, Any] = saved["run"]
        return state

    def remove(self) -> None:
        """Delete the checkpoint of a finished run."""
        for name in ("state.pt", "state.pt.part", "episodes.bin"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()
