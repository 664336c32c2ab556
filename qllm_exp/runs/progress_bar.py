"""Progress of a run on the console: a bar in a terminal, a line every 30 seconds elsewhere."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from qllm_exp.utils.text import duration

LINE_EVERY_S = 30.0  # seconds between lines, where there is no terminal

log = logging.getLogger(__name__)


class Progress:
    """Shows the progress of one run, in environment steps.

    Args:
        name: name of the run.
        total: environment steps of the whole run.
        start: environment steps done before this process started.
    """

    def __init__(self, name: str, total: int, start: int) -> None:
        self.total, self.start, self.begin = total, start, time.monotonic()
        self.last_line = self.begin
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit=" steps",
            unit_scale=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            dynamic_ncols=True,
            disable=not self.terminal,
            smoothing=0.1,
        )

    def __call__(self, progress: dict[str, Any]) -> None:
        """Update the display.

        Args:
            progress: 'env_step', environment steps so far; 'return', that of the last evaluation, or None before it.
        """
        if self.terminal:
            self.bar.n = min(progress["env_step"], self.total)
            if progress["return"] is not None:
                self.bar.set_postfix({"return": f"{progress['return']:.3f}"}, refresh=False)
            self.bar.update(0)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            log.info(self.line(progress))

    def speed(self, env_step: int) -> float:
        """Return the environment steps per second since this process started."""
        return (env_step - self.start) / max(1e-9, time.monotonic() - self.begin)

    def line(self, progress: dict[str, Any]) -> str:
        """Return the line: '400,000 of 2,000,000 steps (20%), return 0.812, 9,512 steps/s, 2 min 48 s left'."""
        step, speed = progress["env_step"], self.speed(progress["env_step"])
        parts = [f"{step:,} of {self.total:,} steps ({step / self.total:.0%})"]
        if progress["return"] is not None:
            parts.append(f"return {progress['return']:.3f}")
        if speed > 0:
            parts += [f"{speed:,.0f} steps/s", f"{duration(max(0, self.total - step) / speed)} left"]
        return ", ".join(parts)

    def close(self) -> None:
        """Close the bar, which stays on the terminal."""
        self.bar.close()
