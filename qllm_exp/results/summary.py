"""What a run or a sweep ends with: the table on the console, and the same with the learning curves as files."""

import logging
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.results.collect import collect
from qllm_exp.results.table import markdown

log = logging.getLogger(__name__)


def summarise(runs: Sequence[Path], folder: Path) -> None:
    """Print the comparison of finished runs and write `table.md` and `curves.png` into `folder`."""
    from qllm_exp.results.figures import curves

    records = collect(runs).finished
    final, absolute = markdown(records, "final_return"), markdown(records, "absolute_return")
    fewest = min(sum((r.task, r.method) == (one.task, one.method) for r in records) for one in records)
    note = "\nFewer than 5 seeds in a cell: its interval is too narrow to conclude from.\n" if fewest < 5 else ""
    head = "mean [95 % bootstrap interval over seeds] (n seeds)"
    text = f"""Return of the last evaluation, {head}:

{final}

Absolute metric (best parameters of each run, evaluated once more), {head}:

{absolute}
{note}"""
    folder.mkdir(parents=True, exist_ok=True)
    runs_list = "\n".join(f"- {r.path.name}" for r in records)
    (folder / "table.md").write_text(f"{text}\nFrom the runs:\n\n{runs_list}\n")
    curves(records, folder / "curves.png")
    log.info("\n%s\ntable:  %s\ncurves: %s", text, folder / "table.md", folder / "curves.png")
