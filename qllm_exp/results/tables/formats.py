"""Output formats of tables: Markdown, LaTeX, CSV and HTML."""

import csv
import html as escape_html
import io
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import Sheet, cell_text, label_columns, markdown, value_and_interval

CSV_FIELDS = ("metric", "statistic", "value", "low", "high", "n", "few", "bold", "text")

# In the order of Unicode from U+03B1; '' where LaTeX has no command of its own (omicron, final sigma).
_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi"),
    *("", "pi", "rho", "", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)  # fmt: skip
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row, LaTeX would read it as an argument of the \\ before
    "]": "{]}",
    "†": r"\textsuperscript{\dag}",
    '"': "''",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "∞": r"$\infty$",
    "∂": r"$\partial$",
    "Δ": r"$\Delta$",
    **{chr(0x3B1 + offset): f"$\\{name}$" for offset, name in enumerate(_GREEK) if name},
    **{char: char for char in "–—‘’“”…"},
}
_ACCENTS = set(
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
)  # that LaTeX's default fonts have
_LINE_CHARS = 75  # characters in a line of LaTeX's text, in small print
_MAX_ROW_CHARS = 165  # characters in a row, with intervals below their values, that stay readable when scaled to fit
_PAGE_ROWS = 40  # rows of a table on a page
_HEAD_CHARS = 14  # characters in a line of a column's head, in a wide table
_SCALE_TO_FIT = (
    r"\ifdefined\resizebox\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}"
    r"\else\usebox0\fi\else\usebox0\fi"
)
_STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em;color:#222;background:#fff}table{border-collapse:collapse;margin:1em 0}"
    "caption{text-align:left;padding:.4em 0}th,td{padding:.25em .8em;text-align:right;white-space:nowrap}"
    "th.label{text-align:left;font-weight:normal}thead th{border-bottom:1px solid #222;font-weight:bold!important}"
    "table{border-top:2px solid #222;border-bottom:2px solid #222}.notes{font-size:85%;max-width:60em}"
    ".spread{display:block;font-size:80%;color:#555}"
)


def latex(sheets: Sequence[Sheet]) -> str:
    """Return one LaTeX table environment per table, or several for a long one.

    The document needs \\usepackage{booktabs}. With \\usepackage{graphicx}, tables wider than the text are scaled to fit.
    """
    header = "% needs \\usepackage{booktabs}; with \\usepackage{graphicx} wide tables are scaled to fit\n"
    return header + "\n".join(_latex(sheet) for sheet in sheets)


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Return one CSV row per cell, with numbers in full precision: labels, the column, then `CSV_FIELDS`.

    Cells that are text have no numbers.
    """
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    labels = list(dict.fromkeys(label for sheet in sheets for label in sheet.labels))
    headings = {sheet.heading for sheet in sheets}
    heading = sheets[0].heading
    if len(headings) > 1 or heading in labels:
        heading = "column"
    writer.writerow([*labels, heading, *CSV_FIELDS])
    for sheet in sheets:
        for row, cells in sheet.rows:
            label_values = dict(zip(sheet.labels, row, strict=True))
            for column, cell in zip(sheet.columns, cells, strict=True):
                if cell is not None:
                    values = [label_values.get(label, "") for label in labels]
                    writer.writerow([*values, column, *_csv_fields(sheet, cell)])
    return output.getvalue()


def html(sheets: Sequence[Sheet]) -> str:
    """Return a self-contained HTML page."""
    tables = "\n".join(html_table(sheet) + html_notes(sheet) for sheet in sheets)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{tables}\n</body></html>\n"
    )


WRITERS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "html": html,
}
FORMAT_BY_ENDING = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def _latex(sheet: Sheet) -> str:
    """Return one table as LaTeX.

    If the table is wider than a line, intervals are set below their values; if it is still wider, it is scaled to fit. Many
    columns or rows are split into several tables, the first of which has the footnotes.
    """
    heads, labels = label_columns(sheet)
    texts = [[cell_text(cell, sheet.marks_small_n) for cell in cells] for _, cells in sheet.rows]
    label_widths = _widths(heads, labels)
    wide = sum(label_widths) + sum(_widths(sheet.columns, texts)) > _LINE_CHARS
    column_groups = [slice(None)]
    page_rows = _PAGE_ROWS
    if wide:
        stacked = [
            [max(text.partition(" ["), key=len) for text in row] for row in texts
        ]  # the longer of a cell's two lines
        stacked_widths = _widths(["" for _ in sheet.columns], stacked)
        column_groups = _split_columns(stacked_widths, _MAX_ROW_CHARS - sum(label_widths))
        page_rows = _PAGE_ROWS // 2
    parts = [(start, group) for start in range(0, len(labels) or 1, page_rows) for group in column_groups]
    notes = "".join(f"\n\n\\smallskip\\raggedright\\footnotesize {in_latex(note)}\\par" for note in sheet.notes)
    tables = []
    for number, (start, group) in enumerate(parts, 1):
        head = [_wrap_head(text) if wide else in_latex(text) for text in (*heads, *sheet.columns[group])]
        stop = start + page_rows
        rows = [
            [*map(in_latex, label), *(_latex_cell(cell, sheet, wide) for cell in cells[group])]
            for label, (_, cells) in zip(labels[start:stop], sheet.rows[start:stop], strict=True)
        ]
        body = "\n".join("  " + " & ".join(row) + (r" \\[2pt]" if wide else r" \\") for row in rows)
        title = in_latex(sheet.title)
        if len(parts) > 1:
            title += f" (part {number} of {len(parts)})"
        tables.append(
            f"\\begin{{table}}[tbp]\n\\centering\n\\small\n\\caption{{{title}.}}\n\\sbox0{{%\n"
            f"\\begin{{tabular}}{{{'l' * len(heads)}{'r' * (len(head) - len(heads))}}}\n  \\toprule\n"
            f"  {' & '.join(head)} \\\\\n  \\midrule\n{body}\n  \\bottomrule\n\\end{{tabular}}}}%\n"
            f"{_SCALE_TO_FIT}{notes if number == 1 else ''}\n\\end{{table}}\n"
        )
    return "\n".join(tables)


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the characters of each column, including the space between columns."""
    return [max(map(len, column)) + 3 for column in zip(heads, *rows, strict=True)]


def _split_columns(widths: Sequence[int], available: float) -> list[slice]:
    """Return groups of columns that fit side by side into the available characters, at least one column each."""
    starts = [0]
    for column in range(len(widths)):
        if column > starts[-1] and sum(widths[starts[-1] : column + 1]) > available:
            starts.append(column)
    stops = [*starts[1:], len(widths)]
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def in_latex(text: str) -> str:
    """Return text with LaTeX's special characters escaped. Characters that its fonts lack become code points: U+4E2D."""
    return "".join(_LATEX.get(char) or (char if _has_glyph(char) else f"U+{ord(char):04X}") for char in text)


def _has_glyph(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    decomposed = unicodedata.normalize("NFD", char)
    return len(decomposed) == 2 and decomposed[0].isascii() and decomposed[1] in _ACCENTS and ord(char) < 0x180


def _wrap_head(text: str) -> str:
    lines = textwrap.wrap(text, _HEAD_CHARS, break_long_words=False, break_on_hyphens=False)
    return _stack(map(in_latex, lines)) if len(lines) > 1 else in_latex(text)


def _stack(lines: Iterable[str]) -> str:
    stacked = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _latex_cell(cell: Cell | str | None, sheet: Sheet, stacked: bool) -> str:
    """Return a cell as LaTeX.

    Args:
        cell: an estimate, text, or None if there is no run.
        sheet: the table.
        stacked: whether the interval and n are set below the value, in small print.
    """
    bold = False
    if isinstance(cell, Cell):
        value, rest = (text.replace("-", "−") for text in value_and_interval(cell))
        if sheet.marks_small_n and cell.estimate.too_few_runs:
            rest += "†"
        bold = cell.bold
    else:
        value, bracket, rest = cell_text(cell).partition(" [")
        rest = f"{bracket}{rest}"
    value = f"\\textbf{{{in_latex(value)}}}" if bold else in_latex(value)
    if stacked and rest:
        return _stack([value, rf"\scriptsize {in_latex(rest.strip())}"])
    return value + in_latex(rest)


def _csv_fields(sheet: Sheet, cell: Cell | str) -> list[Any]:
    """Return the values of `CSV_FIELDS`."""
    if isinstance(cell, str):
        return [""] * (len(CSV_FIELDS) - 1) + [cell]
    estimate = cell.estimate
    low, high = (repr(bound) if np.isfinite(bound) else "" for bound in (estimate.low, estimate.high))
    small_n, bold = int(estimate.too_few_runs), int(cell.bold)
    return [sheet.metric, sheet.stat, repr(estimate.value), low, high, estimate.runs, small_n, bold, ""]


def html_table(sheet: Sheet, columns: slice = slice(None)) -> str:
    """Return the table element alone, with its title as caption.

    Args:
        sheet: the table.
        columns: the columns to show, for a table that is wider than its place.
    """
    heads, labels = label_columns(sheet)
    head = "".join(f'<th class="label" scope="col">{escape_html.escape(text)}</th>' for text in heads)
    head += "".join(f'<th scope="col">{escape_html.escape(text)}</th>' for text in sheet.columns[columns])
    rows = []
    for row, (_, cells) in zip(labels, sheet.rows, strict=True):
        line = "".join(f'<th class="label" scope="row">{escape_html.escape(text)}</th>' for text in row)
        line += "".join(f"<td>{_html_cell(cell, sheet)}</td>" for cell in cells[columns])
        rows.append(f"<tr>{line}</tr>")
    return (
        f"<table><caption>{escape_html.escape(sheet.title)}.</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def html_notes(sheet: Sheet) -> str:
    """Return the footnotes as a list element; '' if there are none."""
    if not sheet.notes:
        return ""
    items = "".join(f"<li>{escape_html.escape(note)}</li>" for note in sheet.notes)
    return f'\n<ul class="notes">{items}</ul>'


def _html_cell(cell: Cell | str | None, sheet: Sheet) -> str:
    """Return the value, and below it the interval and n in small print, which keeps columns narrow."""
    text = cell_text(cell, sheet.marks_small_n)
    if not isinstance(cell, Cell):
        return escape_html.escape(text)
    value, _ = value_and_interval(cell)
    value_html = f"<strong>{value}</strong>" if cell.bold else value
    interval, bracket, n = escape_html.escape(text[len(value) :].strip()).partition("]")
    return f'{value_html} <span class="spread"><span class="interval">{interval}{bracket}</span>{n}</span>'
