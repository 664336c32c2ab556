"""A run on the screen: a progress bar on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from qllm_exp.utils.text import duration

LINE_EVERY_S = 30.0  # seconds between plain lines

log = logging.getLogger(__name__)


class Progress:
    """Progress of one run in environment steps.

    Args:
        name: of the run. total: environment steps. start: steps done before this process began.
    """

    def __init__(self, name: str, total: int, start: int) -> None:
        self.total, self.start, self.begin = total, start, time.monotonic()
        self.last_line = self.begin
        self.terminal = sys.stderr.isatty()
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        self.bar = tqdm(
            total=total, initial=start, desc=name, unit=" steps", unit_scale=True, bar_format=form,
            dynamic_ncols=True, disable=not self.terminal, smoothing=0.1,
        )  # fmt: skip

    def __call__(self, figures: dict[str, Any]) -> None:
        """Show {'env_step': ..., 'return': last evaluation or None}."""
        if self.terminal:
            self.bar.n = min(figures["env_step"], self.total)
            if figures["return"] is not None:
                self.bar.set_postfix({"return": f"{figures['return']:.3f}"}, refresh=False)
            self.bar.update(0)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            log.info(self.line(figures))

    def speed(self, env_step: int) -> float:
        """Environment steps per second since this process began."""
        return (env_step - self.start) / max(1e-9, time.monotonic() - self.begin)

    def line(self, figures: dict[str, Any]) -> str:
        """'400,000 of 2,000,000 steps (20%), return 0.812, 9,512 steps/s, 2 min 48 s left'."""
        step, speed = figures["env_step"], self.speed(figures["env_step"])
        parts = [f"{step:,} of {self.total:,} steps ({step / self.total:.0%})"]
        if figures["return"] is not None:
            parts.append(f"return {figures['return']:.3f}")
        if speed > 0:
            parts += [f"{speed:,.0f} steps/s", f"{duration(max(0, self.total - step) / speed)} left"]
        return ", ".join(parts)

    def close(self) -> None:
        self.bar.close()
