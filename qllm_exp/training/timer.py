"""Time spent in each part of a run."""

import time
from types import TracebackType

import torch


class Timer:
    """Measures seconds per part: `with timer("update"): ...`. Parts must not be nested.

    Args:
        device: Device of the computations.
        exact: Whether to wait for a GPU to finish at the start and the end of each part. A GPU runs asynchronously, so the times
            are only exact with it, but waiting slows down the run.

    Attributes:
        seconds: Seconds spent so far, by part.
    """

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = exact and device.type == "cuda"
        self._part, self._start = "", 0.0

    def __call__(self, part: str) -> "Timer":
        """Select the part that the next `with` block measures."""
        self._part = part
        return self

    def __enter__(self) -> None:
        if self._synchronise:
            torch.cuda.synchronize()
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._synchronise:
            torch.cuda.synchronize()
        self.seconds[self._part] = self.seconds.get(self._part, 0.0) + time.perf_counter() - self._start
