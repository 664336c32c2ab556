"""A sweep on the screen: a live line per running run and one for all on a terminal, plain lines elsewhere."""

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
from qllm_exp.sweep.pool import Ended, Job
from qllm_exp.utils.text import duration

log = logging.getLogger(__name__)

REFRESH_S = 0.5  # seconds between readings of what the runs say


class Display:
    """Shows the runs of a pool.

    Args:
        total: runs. slots: of them at a time.
    """

    def __init__(self, total: int, slots: int) -> None:
        self.total, self.count = total, 0
        self.terminal = sys.stderr.isatty()
        self.last_line, self.last_look = time.monotonic(), 0.0
        hide = not self.terminal
        form = "{desc}: {n_fmt}/{total_fmt} runs |{bar}| {elapsed}"
        self.whole = tqdm(total=total, desc="sweep", bar_format=form, dynamic_ncols=True, disable=hide, position=0)
        self.lines = [
            tqdm(total=0, bar_format="  {desc}", disable=hide, position=i + 1, leave=False, dynamic_ncols=True)
            for i in range(min(total, slots))
        ]

    def show(self, jobs: Sequence[Job]) -> None:
        now = time.monotonic()
        if self.terminal and now - self.last_look >= REFRESH_S:
            self.last_look = now
            for i, line in enumerate(self.lines):
                line.set_description_str(live(jobs[i].directory) if i < len(jobs) else "")
            self.whole.refresh()
        elif not self.terminal and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            running = "; ".join(live(job.directory) for job in jobs)
            log.info("%d of %d runs done; running: %s", self.count, self.total, running)

    def ended(self, one: Ended) -> None:
        self.count += 1
        self.whole.update(1)
        message = f"[{self.count}/{self.total}] {ending(one)}"
        if self.terminal:
            self.whole.write(message, file=sys.stderr)
        else:
            log.info(message)

    def close(self) -> None:
        for line in [*self.lines, self.whole]:
            line.close()


def ending(one: Ended) -> str:
    """'NAME: return 0.983 in 2 min 11 s', or how it failed or why it stopped."""
    name, done = one.directory.path.name, one.directory.result()
    if done is not None:
        return f"{name}: return {done['final_return']:.3f} in {duration(done['wall_s'])}"
    return f"{name}: {'FAILED: ' if one.failed else ''}{one.error}"


def live(directory: RunDirectory) -> str:
    """A running run in a line: 'NAME 43%, return 0.512, 9,512 steps/s, 2 min 48 s left'."""
    return f"{directory.path.name} {progress(directory.status())}"


def progress(status: dict[str, Any]) -> str:
    """'43%, return 0.512, 9,512 steps/s, 2 min 48 s left'."""
    step, total = status.get("env_step") or 0, status.get("total_steps") or 1
    if not step or step >= total:
        return "finishing" if step else "starting"
    returned = "" if status.get("return") is None else f", return {status['return']:.3f}"
    speed = status.get("steps_per_s") or 0
    left = f", {speed:,.0f} steps/s, {duration((total - step) / speed)} left" if speed else ""
    return f"{step / total:.0%}{returned}{left}"


def failure(directory: RunDirectory, error: str, log_path: Path | None) -> str:
    """A failed run in four lines: name, error, log if there is one, and the command that runs it again."""
    again = shlex.join([python(), "-m", "qllm_exp.experiment", str(directory.path)])
    lines = [
        f"  {directory.path.name}",
        f"    {error}",
        *([f"    log: {log_path}"] if log_path else []),
        f"    again: {again}",
    ]
    return "\n".join(lines)


def python() -> str:
    """What to type for this Python."""
    here = shutil.which("python")
    return "python" if here and Path(here) == Path(sys.executable) else shlex.quote(sys.executable)
