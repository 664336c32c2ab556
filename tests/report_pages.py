"""Reading a report's page, for tests: what is in it, as a browser would find it; and making what a report is about."""

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from qllm_exp.credit import stored_function

_NO_END = ("meta",)


class Page(HTMLParser):
    """A page, whose elements must all be closed in order.

    Attributes:
        elements: (tag, attributes) in order. words: all text but that of style and script. rows: texts of the cells of table rows.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._parts: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []
        self.words = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _NO_END:
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
        """The attributes of all elements of a kind."""
        return [attributes for one, attributes in self.elements if one == tag]

    def row(self, *begin: str) -> list[str]:
        """The one row whose first cells are these."""
        (found,) = [row for row in self.rows if row[: len(begin)] == list(begin)]
        return found


def sweep(folder: Path, names: Sequence[str], command: str, started: str = "2026-11-20 21:00:00") -> Path:
    """The folder of a sweep with these runs, which are or would be beside it."""
    folder.mkdir(parents=True)
    record = {"command": command, "started": started, "runs": list(names), "launcher": {"name": "local"}}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def give_function(run: Path, env: str = "matrix", task: str = "climbing", **changes: Any) -> None:
    """Put the bundled function of a task into a run's folder, with other texts where they are given."""
    replace(stored_function.load(stored_function.bundled(env, task)), **changes).save(run / "tfcaf.json")
