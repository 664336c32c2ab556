"""The summary at the end of a run or sweep: a table on the console, and the same table and learning curves as files."""

import logging
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.sheet import markdown, notes_on_runs
from qllm_exp.results.tables.table import comparison
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

_EARLIER = (
    "Not counted: {runs} of earlier commands of this sweep without a result (python -m qllm_exp status {folder})."
)


def summarise(folder: Path, planned: Collection[str] | None = None) -> None:
    """Log the comparison of the finished runs, and write it to `table.md` and `curves.png`.

    If the runs cannot be compared, the reason is logged and nothing fails: the runs have finished.

    Args:
        folder: directory of a run or sweep.
        planned: names of the runs of this command, for a sweep to which earlier commands may have added others. Footnotes on
            missing runs count these alone. None: all runs count.
    """
    try:
        runs = collect([folder])
        if not runs.finished and planned is not None:
            return  # the failed runs are printed, and nothing else is there
        missing = [run for run in runs.unfinished if planned is None or run.name in planned]
        collection = replace(runs, unfinished=missing)
        earlier = len(runs.unfinished) - len(missing)
        notes = [_EARLIER.format(runs=count(earlier, "run"), folder=shlex.quote(str(folder)))] if earlier else []
        sheets = [comparison(collection, metric=metric)[0] for metric in ("final", "absolute")]
        text = markdown([replace(sheet, notes=[*sheet.notes, *notes]) for sheet in sheets])
    except UserError as error:
        log.info("\nno comparison: %s", error)
        return
    names = "\n".join(dict.fromkeys(f"- {record.name}" for record in collection.finished))
    try:
        (folder / "table.md").write_text(f"{text}\nFrom the runs:\n\n{names}\n")
        table_text = str(folder / "table.md")
    except OSError as error:
        table_text = f"not written: {error.strerror}"
    try:
        from qllm_exp.results.figures.per_task import curves  # matplotlib is slow to import

        curves(collection.finished, folder / "curves.png", [*notes_on_runs(collection), *notes])
        curves_text = str(folder / "curves.png")
    except UserError as error:
        curves_text = f"not drawn: {error}"
    log.info("\n%s\ntable:  %s\ncurves: %s", text, table_text, curves_text)
