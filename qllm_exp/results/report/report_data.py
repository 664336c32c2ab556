"""The data of a report: the runs of some directories, their sweeps, and their paths relative to the page."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from qllm_exp.errors import UserError
from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import Collection
from qllm_exp.results.records.reader import Record
from qllm_exp.runs.sweep_directory import RECORD, Sweep, sweeps_in


@dataclass(frozen=True)
class ReportData:
    """The data of a report.

    Attributes:
        collection: the runs.
        sweeps: the sweeps in the given directories, oldest first.
        sources: the directories or addresses, as typed.
        page_folder: the directory of the page.
    """

    collection: Collection
    sweeps: tuple[Sweep, ...]
    sources: tuple[str, ...]
    page_folder: Path

    @property
    def records(self) -> list[Record]:
        """The finished runs, by task, method and seed."""
        return sorted(self.collection.finished, key=_record_order)

    @property
    def title(self) -> str:
        """Names of the sweeps, or else of the sources; at most three."""
        names = [sweep.path.absolute().name for sweep in self.sweeps]
        if not names:
            names = [Path(source).absolute().name for source in self.sources]
        title = ", ".join(names[:3])
        return title if len(names) <= 3 else f"{title} and {len(names) - 3} more"

    def link(self, path: Path) -> str:
        """Return the address of a directory or file relative to the page."""
        return quote(os.path.relpath(path, self.page_folder))

    def sweep_of(self, run_name: str) -> Sweep | None:
        """Return the latest sweep that lists a run."""
        return next((sweep for sweep in reversed(self.sweeps) if run_name in sweep.record.runs), None)


def _record_order(record: Record) -> tuple[object, ...]:
    return keys.sort_key(record.task), keys.sort_key(record.method), record.seed, record.name


def display_path(path: Path) -> str:
    """Return a path as one types it in the directory where the report was made."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def find_sweeps(folders: Iterable[Path]) -> tuple[Sweep, ...]:
    """Return the sweeps that the directories are or contain."""
    sweeps: list[Sweep] = []
    for path in folders:
        with suppress(UserError):  # an unreadable sweep has no command to show; its runs are found by their directories
            sweeps += [Sweep(path)] if (path / RECORD).exists() else sweeps_in(path)
    return tuple({sweep.path.absolute(): sweep for sweep in sweeps}.values())


def one_record_per_method(records: Sequence[Record]) -> list[Record]:
    """Return one record for each method and settings, in order."""
    return list({(id(record.settings), record.method): record for record in reversed(records)}.values())[::-1]
