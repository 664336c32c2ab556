"""The summary at the end of a run or sweep: a table on the console, and the same table and learning curves as files."""

import logging
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.sheet import markdown, notes_on_missing
from qllm_exp.results.tables.table import comparison

log = logging.getLogger(__name__)


def summarise(folder: Path) -> None:
    """Log the comparison of the finished runs, and write it to `table.md` and `curves.png`.

    If the runs cannot be compared, the reason is logged and nothing fails: the runs have finished.

    Args:
        folder: directory of a run or sweep.
    """
    try:
        collection = collect([folder])
        text = markdown([comparison(collection, metric=metric)[0] for metric in ("final", "absolute")])
    except UserError as error:
        log.info("\nno comparison: %s", error)
        return
    runs = "\n".join(f"- {record.name}" for record in collection.finished)
    try:
        (folder / "table.md").write_text(f"{text}\nFrom the runs:\n\n{runs}\n")
        table_text = str(folder / "table.md")
    except OSError as error:
        table_text = f"not written: {error.strerror}"
    try:
        from qllm_exp.results.figures.per_task import curves  # matplotlib is slow to import

        curves(collection.finished, folder / "curves.png", notes_on_missing(collection))
        curves_text = str(folder / "curves.png")
    except UserError as error:
        curves_text = f"not drawn: {error}"
    log.info("\n%s\ntable:  %s\ncurves: %s", text, table_text, curves_text)
