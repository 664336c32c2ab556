"""Elements of an HTML page.

Everything that is not `Html` is text and gets escaped, so no run can put markup or characters that reorder text into a report.
"""

import html
from collections.abc import Callable, Iterable, Sequence

from qllm_exp.errors import UserError
from qllm_exp.results.tables.formats import html_notes, html_table
from qllm_exp.results.tables.sheet import Sheet
from qllm_exp.utils.text import inert_lines

MAX_OPEN_ROWS = 40  # a longer table is collapsed
MAX_COLUMNS = 8  # a table with more columns would be cut off in print


class Html(str):
    """Text that is markup."""


def tag(name: str, *children: str, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: name of the element.
        *children: text or markup inside the element.
        **attributes: `class_` becomes class, `data_v` becomes data-v. True is an attribute without a value; None and False are
            left out.
    """
    parts = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(attribute)
        elif value is not None and value is not False:
            parts.append(f'{attribute}="{html.escape(inert_lines(value))}"')
    return Html(f"<{' '.join(parts)}>{concat(children)}</{name}>")


def concat(parts: Iterable[str], separator: str = "") -> Html:
    """Return parts one after the other."""
    return Html(_to_markup(separator).join(map(_to_markup, parts)))


def section(anchor: str, title: str, *children: str) -> Html:
    """Return a section of the page.

    Args:
        anchor: its id, to which the table of contents links.
        title: its heading.
        *children: its content.
    """
    heading = tag("h2", title, id=f"{anchor}-title")
    return Html(tag("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title") + "\n")


def scroll_box(label: str, child: str) -> Html:
    """Return a box that scrolls sideways if its content is wider than the page."""
    return tag("div", child, class_="scroll", role="region", tabindex=0, aria_label=label)


def definition_list(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return names with their values; a pair with the value '' is left out."""
    items = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value]
    return tag("dl", *items, class_="definitions")


def command_block(*lines: str) -> Html:
    """Return commands to type."""
    return tag("pre", tag("code", "\n".join(lines)), class_="command")


def details(summary: str, *children: str, is_open: bool = False) -> Html:
    """Return content that is collapsed until the reader opens it, or prints the page."""
    return tag("details", tag("summary", summary), *children, open=is_open)


def missing_note(reason: str) -> Html:
    """Return the sentence that takes the place of missing content."""
    return tag("p", reason, class_="missing")


def or_missing_note(name: str, make: Callable[[], str]) -> Html:
    """Return the content that `make` returns, or the reason why there is none.

    Args:
        name: name of the content, for the sentence.
        make: returns text or markup; may raise UserError.
    """
    try:
        return concat([make()])
    except UserError as error:
        return missing_note(f"No {name}: {error}")


def results_table(sheet: Sheet) -> Html:
    """Return a table of results with its footnotes: in parts if it has many columns, collapsed if it has many rows."""
    column_groups = [slice(start, start + MAX_COLUMNS) for start in range(0, len(sheet.columns), MAX_COLUMNS)]
    tables = concat(scroll_box(sheet.title, Html(html_table(sheet, columns))) for columns in column_groups)
    content = concat([tables, Html(html_notes(sheet))])
    if len(sheet.rows) > MAX_OPEN_ROWS:
        return details(f"{sheet.title}: {len(sheet.rows)} rows", content)
    return content


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "plain") -> Html:
    """Return a table whose first column names its rows.

    Args:
        caption: title of the table.
        heads: heads of the columns.
        rows: cells of each row: text, markup, or a complete <td>.
        class_: CSS classes.
    """
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    body_rows = (tag("tr", _row_head(row[0]), *map(_cell, row[1:])) for row in rows)
    body = concat(body_rows, Html("\n"))
    element = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body), class_=class_)
    return scroll_box(caption, element)


def _row_head(cell: str) -> Html:
    return tag("th", cell, scope="row", class_="label")


def _cell(cell: str) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell)


def _to_markup(part: str) -> str:
    return part if isinstance(part, Html) else html.escape(inert_lines(part))
