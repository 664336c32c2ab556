"""What a run or sweep ends with: the table on the console, and the same with the learning curves as files."""

import logging
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.sheet import markdown, notes_on_missing
from qllm_exp.results.tables.table import comparison

log = logging.getLogger(__name__)


def summarise(folder: Path) -> None:
    """Print the comparison of the finished runs of a run's or sweep's folder, and write `table.md` and `curves.png` into it.

    What cannot be compared is said and fails nothing: the runs are done.
    """
    try:
        found = collect([folder])
        text = markdown([comparison(found, metric=metric)[0] for metric in ("final", "absolute")])
    except UserError as error:
        log.info("\nno comparison: %s", error)
        return
    runs = "\n".join(f"- {one.name}" for one in found.finished)
    (folder / "table.md").write_text(f"{text}\nFrom the runs:\n\n{runs}\n")
    try:
        from qllm_exp.results.figures.per_task import curves  # matplotlib is slow to import

        curves(found.finished, folder / "curves.png", notes_on_missing(found))
        drawn = str(folder / "curves.png")
    except UserError as error:
        drawn = f"not drawn: {error}"
    log.info("\n%s\ntable:  %s\ncurves: %s", text, folder / "table.md", drawn)
