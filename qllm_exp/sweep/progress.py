"""Progress of a sweep: live lines for the runs in progress and a bar for the sweep on a terminal, plain lines elsewhere."""

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qllm_exp.runs.progress_bar import LINE_EVERY_S
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.pool import ActiveRun, RunOutcome
from qllm_exp.utils.text import duration, inert_lines

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # seconds between reads of the status files


class Display:
    """Shows the runs of a pool.

    Args:
        total: number of runs.
        slots: number of runs at a time.
    """

    def __init__(self, total: int, slots: int) -> None:
        self.total = total
        self.ended = 0
        self.is_terminal = sys.stderr.isatty()
        self.last_line = time.monotonic()
        self.last_refresh = 0.0
        hidden = not self.is_terminal
        bar_format = "{desc}: {n_fmt}/{total_fmt} runs |{bar}| {elapsed}"
        self.sweep_bar = tqdm(
            total=total, desc="sweep", bar_format=bar_format, dynamic_ncols=True, disable=hidden, leave=None
        )  # below the bar of a search, if there is one: then it does not stay
        self.run_lines = [
            tqdm(total=0, bar_format="  {desc}", disable=hidden, leave=False, dynamic_ncols=True)
            for _ in range(min(total, slots))
        ]

    def show(self, active: Sequence[ActiveRun]) -> None:
        """Refresh the lines of the runs in progress, if that is due."""
        now = time.monotonic()
        if self.is_terminal and now - self.last_refresh >= REFRESH_S:
            self.last_refresh = now
            for i, line in enumerate(self.run_lines):
                line.set_description_str(live_line(active[i].directory) if i < len(active) else "")
            self.sweep_bar.refresh()
        elif not self.is_terminal and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            running = "; ".join(live_line(run.directory) for run in active)
            log.info("%d of %d runs ended; running: %s", self.ended, self.total, running)

    def run_ended(self, outcome: RunOutcome) -> None:
        """Print how a run ended."""
        self.ended += 1
        self.sweep_bar.update(1)
        message = f"[{self.ended}/{self.total}] {outcome_line(outcome)}"
        if self.is_terminal:
            self.sweep_bar.write(message, file=sys.stderr)
        else:
            log.info(message)

    def close(self) -> None:
        """Remove the live lines from the terminal."""
        for line in [*self.run_lines, self.sweep_bar]:
            line.close()


def outcome_line(outcome: RunOutcome) -> str:
    """Return 'NAME: return 0.983 in 2 min 11 s', or the error, or why the run did not finish.

    The line about a full disk names no run: it concerns all of them.
    """
    if outcome.disk_full:
        return f"{outcome.error} No further run starts."
    name, result = outcome.directory.path.name, outcome.directory.result()
    if result is not None:
        return f"{name}: return {result['final_return']:.3f} in {duration(result['wall_s'])}"
    if outcome.failed:
        return f"{name}: FAILED: {outcome.error}"
    return f"{name}: {outcome.error}"


def live_line(directory: RunDirectory) -> str:
    """Return 'NAME 43%, return 0.512, 9,512 steps/s, 2 min 48 s left' for a running run."""
    return f"{directory.path.name} {progress(directory.status())}"


def progress(status: dict[str, Any]) -> str:
    """Return '43%, return 0.512, 9,512 steps/s, 2 min 48 s left' for the content of a status.json."""
    step, total = status.get("env_step") or 0, status.get("total_steps") or 1
    if not step:
        return "starting"
    if step >= total:
        return "finishing"
    parts = [f"{step / total:.0%}"]
    if status.get("return") is not None:
        parts.append(f"return {status['return']:.3f}")
    speed = status.get("steps_per_s") or 0
    if speed:
        parts.append(f"{speed:,.0f} steps/s, {duration((total - step) / speed)} left")
    return ", ".join(parts)


def failure_report(directory: RunDirectory, error: str, log_path: Path | None) -> str:
    """Return a failed run in a few inert lines: name, error, log, and the command that runs it again.

    Args:
        directory: the run's directory.
        error: its error message.
        log_path: its log; None if there is none.
    """
    retry = shlex.join([python_command(), "-m", "qllm_exp.experiment", str(directory.path)])
    lines = [f"  {directory.path.name}", f"    {error}"]
    if log_path is not None:
        lines.append(f"    log: {log_path}")
    lines.append(f"    retry: {retry}")
    return inert_lines("\n".join(lines))


def python_command() -> str:
    """Return what to type for this Python: 'python' if that is the one on PATH, else its path."""
    on_path = shutil.which("python")
    return "python" if on_path and Path(on_path) == Path(sys.executable) else shlex.quote(sys.executable)
