"""Pieces of an HTML page. Whatever is not `Html` already is text and gets escaped, so that no run can put markup into a report."""

import html
from collections.abc import Callable, Iterable, Sequence

from qllm_exp.errors import UserError
from qllm_exp.results.tables.formats import html_notes, html_table
from qllm_exp.results.tables.sheet import Sheet

LONG = 40  # rows; a longer table is folded
WIDE = 8  # columns; a table with more would be cut off in print


class Html(str):
    """Text that is markup."""


def tag(name: str, *children: str, **attributes: object) -> Html:
    """An element. `class_` is class, `data_v` is data-v; True is an attribute without a value, None and False are none."""
    written = [name]
    for key, value in attributes.items():
        word = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(word)
        elif value is not None and value is not False:
            written.append(f'{word}="{html.escape(str(value))}"')
    return Html(f"<{' '.join(written)}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(_markup(between).join(map(_markup, parts)))


def section(anchor: str, title: str, *children: str) -> Html:
    """A section of the page, to which the contents list leads."""
    heading = tag("h2", title, id=f"{anchor}-title")
    return Html(tag("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title") + "\n")


def scroll(label: str, child: str) -> Html:
    """A box that scrolls sideways by itself where its content is wider than the page."""
    return tag("div", child, class_="scroll", role="region", tabindex=0, aria_label=label)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and values; a pair whose value is '' is left out."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value), class_="facts")


def command(*lines: str) -> Html:
    """What to type."""
    return tag("pre", tag("code", "\n".join(lines)), class_="command")


def folded(summary: str, *children: str, opened: bool = False) -> Html:
    """Shown where the reader asks for it, and in print."""
    return tag("details", tag("summary", summary), *children, open=opened)


def absent(why: str) -> Html:
    """The sentence in the place of something that is not there."""
    return tag("p", why, class_="absent")


def or_sentence(what: str, make: Callable[[], str]) -> Html:
    """What `make` gives, or why it cannot be had."""
    try:
        return joined([make()])
    except UserError as error:
        return absent(f"No {what}: {error}")


def sheet(one: Sheet) -> Html:
    """A table of results with its footnotes: in parts where it has many columns, folded where it has many rows."""
    parts = [slice(at, at + WIDE) for at in range(0, len(one.columns), WIDE)]
    tables = joined(scroll(one.title, Html(html_table(one, part))) for part in parts)
    whole = joined([tables, Html(html_notes(one))])
    return folded(f"{one.title}: {len(one.rows)} rows", whole) if len(one.rows) > LONG else whole


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "plain") -> Html:
    """A table whose first column names its rows. Cells that are no `Html` are text; one that is a <td> or <th> stays as it is."""
    head = tag("tr", *(tag("th", one, scope="col") for one in heads))
    body = joined((tag("tr", _first(row[0]), *map(_cell, row[1:])) for row in rows), Html("\n"))
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body), class_=class_)
    return scroll(caption, whole)


def _first(cell: str) -> Html:
    return tag("th", cell, scope="row", class_="label")


def _cell(cell: str) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)


def _markup(part: str) -> str:
    return part if isinstance(part, Html) else html.escape(part)
