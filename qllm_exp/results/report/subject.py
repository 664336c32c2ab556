"""What a report is about: the runs of some folders, their sweeps, and where they are as seen from the page."""

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
    """What a report is about.

    Attributes:
        collection: the runs. sweeps: those of the folders given, the oldest first.
        given: the folders, or addresses, as they were typed.
        page: the folder that the page goes into.
    """

    collection: Collection
    sweeps: tuple[Sweep, ...]
    given: tuple[str, ...]
    page: Path

    @property
    def records(self) -> list[Record]:
        """The finished runs by task, method and seed."""

        def place(one: Record) -> tuple[object, ...]:
            return keys.sort_key(one.task), keys.sort_key(one.method), one.seed, one.name

        return sorted(self.collection.finished, key=place)

    @property
    def title(self) -> str:
        names = [one.path.absolute().name for one in self.sweeps] or [Path(one).absolute().name for one in self.given]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def link(self, path: Path) -> str:
        """Address of a folder or file relative to the page."""
        return quote(os.path.relpath(path, self.page))

    def sweep_of(self, run: str) -> Sweep | None:
        """The latest sweep that names a run."""
        return next((one for one in reversed(self.sweeps) if run in one.record.runs), None)


def shown(path: Path) -> str:
    """A path as one types it where the report was made."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside


def sweeps_of(folders: Iterable[Path]) -> tuple[Sweep, ...]:
    """The sweeps of folders that are a sweep's, or hold some."""
    found: list[Sweep] = []
    for path in folders:
        with suppress(UserError):  # one that cannot be read has no command to show; its runs are told by their folders
            found += [Sweep(path)] if (path / RECORD).exists() else sweeps_in(path)
    return tuple({one.path.absolute(): one for one in found}.values())


def distinct(records: Sequence[Record]) -> list[Record]:
    """One record for each method and settings, in order."""
    return list({(id(one.settings), one.method): one for one in reversed(records)}.values())[::-1]
