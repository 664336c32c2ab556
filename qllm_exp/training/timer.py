"""Where the time of a run goes."""

import time
from types import TracebackType

import torch


class Timer:
    """Seconds per part: `with clock("update"): ...`. Parts may not be nested.

    Args:
        device: on a GPU, work is only handed over and runs later; with `exact` the clock waits for it, which costs speed.
    """

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = exact and device.type == "cuda"
        self._part, self._since = "", 0.0

    def __call__(self, part: str) -> "Timer":
        self._part = part
        return self

    def __enter__(self) -> None:
        if self._wait:
            torch.cuda.synchronize()
        self._since = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wait:
            torch.cuda.synchronize()
        self.seconds[self._part] = self.seconds.get(self._part, 0.0) + time.perf_counter() - self._since
