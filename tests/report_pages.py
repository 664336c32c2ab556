"""Helpers for tests of reports: parse a page as a browser would, and create what a report is about."""

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from qllm_exp.credit import stored_function

_VOID_ELEMENTS = ("meta",)


class Page(HTMLParser):
    """A parsed page; all its elements must be closed in order.

    Attributes:
        elements: (tag, attributes) in order.
        text: all text except that of style and script.
        rows: text of the cells of each table row.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._parts: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID_ELEMENTS:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self._parts.append(data)
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements with a tag."""
        return [attributes for element, attributes in self.elements if element == tag]

    def row(self, *first_cells: str) -> list[str]:
        """Return the only row that starts with these cells."""
        (row,) = [row for row in self.rows if row[: len(first_cells)] == list(first_cells)]
        return row


def make_sweep(folder: Path, names: Sequence[str], command: str, started: str = "2026-11-20 21:00:00") -> Path:
    """Create the directory of a sweep of runs, which are beside it or do not exist."""
    folder.mkdir(parents=True)
    record = {"command": command, "started": started, "runs": list(names), "launcher": {"name": "local"}}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def give_function(run: Path, env: str = "matrix", task: str = "climbing", **changes: Any) -> None:
    """Put the bundled function of a task into a run directory, with some fields changed."""
    function = stored_function.load(stored_function.bundled_path(env, task))
    replace(function, **changes).save(run / "tfcaf.json")
