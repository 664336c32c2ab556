"""A table written as Markdown, LaTeX, CSV or HTML."""

import csv
import html as escape_html
import io
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import Sheet, figures, label_columns, markdown, text

CSV_FIGURES = ("metric", "statistic", "value", "low", "high", "n", "few", "bold", "text")

_GREEK = (
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
    ),
    *("", "pi", "rho", "", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a line it would be an argument
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
    **{chr(0x3B1 + at): f"$\\{name}$" for at, name in enumerate(_GREEK) if name},
    **{sign: sign for sign in "–—‘’“”…"},
}
_ACCENTS = set(
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
)  # that LaTeX's own fonts have
_LINE = 75  # characters of a line of LaTeX, in small print
_WIDEST = 165  # characters in a row, intervals below their values, that can still be read when they are made to fit
_PAGE = 40  # lines of a table on a page
_HEAD = 14  # characters of a column's head in a line, in a wide table
_FITTED = (
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
    """A table environment for each, and for a long one several; the document needs \\usepackage{booktabs}.

    With \\usepackage{graphicx} tables that would run over the margin are made smaller.
    """
    return "% needs \\usepackage{booktabs}; with \\usepackage{graphicx} wide tables are made to fit\n" + "\n".join(
        _latex(one) for one in sheets
    )


def as_csv(sheets: Sequence[Sheet]) -> str:
    """A row per cell, numbers in full: labels, the column, then `CSV_FIGURES`. Cells that are text have no figures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    labels = list(dict.fromkeys(label for one in sheets for label in one.labels))
    heading = sheets[0].heading if len({one.heading for one in sheets}) == 1 else "column"
    heading = heading if heading not in labels else "column"
    writer.writerow([*labels, heading, *CSV_FIGURES])
    for sheet in sheets:
        for row, cells in sheet.rows:
            known = dict(zip(sheet.labels, row, strict=True))
            for column, cell in zip(sheet.columns, cells, strict=True):
                if cell is not None:
                    writer.writerow([*(known.get(label, "") for label in labels), column, *_figures(sheet, cell)])
    return out.getvalue()


def html(sheets: Sequence[Sheet]) -> str:
    """A page that stands alone."""
    parts = "\n".join(html_table(one) + html_notes(one) for one in sheets)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{parts}\n</body></html>\n"
    )


WRITERS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "html": html,
}
ENDINGS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def _latex(sheet: Sheet) -> str:
    """In a table that is wider than a line intervals stand below their values; what is still wider is made smaller.

    Of many columns, and of many rows, several tables are made, the first of which has the footnotes.
    """
    heads, labels = label_columns(sheet)
    plain = [[text(cell, sheet.marks_few) for cell in cells] for _, cells in sheet.rows]
    of_labels = _widths(heads, labels)
    wide = sum(of_labels) + sum(_widths(sheet.columns, plain)) > _LINE
    below = [
        [max(one.partition(" ["), key=len) for one in row] for row in plain
    ]  # the longer of the two lines of a cell
    groups = _groups(_widths(["" for _ in sheet.columns], below), _WIDEST - sum(of_labels)) if wide else [slice(None)]
    step = _PAGE // 2 if wide else _PAGE
    parts = [(at, group) for at in range(0, len(labels) or 1, step) for group in groups]
    notes = "".join(f"\n\n\\smallskip\\raggedright\\footnotesize {in_latex(note)}\\par" for note in sheet.notes)
    written = []
    for number, (at, group) in enumerate(parts):
        said = [_in_lines(one) if wide else in_latex(one) for one in (*heads, *sheet.columns[group])]
        rows = [
            [*map(in_latex, label), *(_in_latex_cell(cell, sheet, wide) for cell in cells[group])]
            for label, (_, cells) in zip(labels[at : at + step], sheet.rows[at : at + step], strict=True)
        ]
        body = "\n".join("  " + " & ".join(row) + (r" \\[2pt]" if wide else r" \\") for row in rows)
        title = in_latex(sheet.title) + f" (part {number + 1} of {len(parts)})" * (len(parts) > 1)
        written.append(
            f"\\begin{{table}}[tbp]\n\\centering\n\\small\n\\caption{{{title}.}}\n\\sbox0{{%\n"
            f"\\begin{{tabular}}{{{'l' * len(heads)}{'r' * (len(said) - len(heads))}}}\n  \\toprule\n"
            f"  {' & '.join(said)} \\\\\n  \\midrule\n{body}\n  \\bottomrule\n\\end{{tabular}}}}%\n"
            f"{_FITTED}{notes * (number == 0)}\n\\end{{table}}\n"
        )
    return "\n".join(written)


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Characters of each column, the space between columns included."""
    return [max(map(len, column)) + 3 for column in zip(heads, *rows, strict=True)]


def _groups(widths: Sequence[int], room: float) -> list[slice]:
    """Columns that stand side by side in the room of one table, at least one."""
    begins = [0]
    for at in range(len(widths)):
        if at > begins[-1] and sum(widths[begins[-1] : at + 1]) > room:
            begins.append(at)
    return [slice(*ends) for ends in zip(begins, [*begins[1:], len(widths)], strict=True)]


def in_latex(given: str) -> str:
    """Text with the characters that mean something to LaTeX escaped. What its own fonts lack is written by its code: U+4E2D."""
    return "".join(_LATEX.get(sign) or (sign if _has_glyph(sign) else f"U+{ord(sign):04X}") for sign in given)


def _has_glyph(sign: str) -> bool:
    if sign.isascii():
        return sign.isprintable()
    apart = unicodedata.normalize("NFD", sign)
    return len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS and ord(sign) < 0x180


def _in_lines(given: str) -> str:
    lines = textwrap.wrap(given, _HEAD, break_long_words=False, break_on_hyphens=False)
    return _stacked(map(in_latex, lines)) if len(lines) > 1 else in_latex(given)


def _stacked(lines: Iterable[str]) -> str:
    broken = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{broken}\end{{tabular}}"


def _in_latex_cell(cell: Cell | str | None, sheet: Sheet, stacked: bool) -> str:
    """stacked: an interval, and what follows it, stands in small print below the value."""
    if isinstance(cell, Cell):
        value, rest = (one.replace("-", "−") for one in figures(cell))
        rest += "†" * (sheet.marks_few and cell.estimate.flag)
    else:
        value, space, rest = text(cell).partition(" [")
        rest = f"{space}{rest}"
    above = f"\\textbf{{{in_latex(value)}}}" if isinstance(cell, Cell) and cell.bold else in_latex(value)
    if stacked and rest:
        return _stacked([above, rf"\scriptsize {in_latex(rest.strip())}"])
    return above + in_latex(rest)


def _figures(sheet: Sheet, cell: Cell | str) -> list[Any]:
    if isinstance(cell, str):
        return [""] * (len(CSV_FIGURES) - 1) + [cell]
    one = cell.estimate
    bounds = [repr(bound) if np.isfinite(bound) else "" for bound in (one.low, one.high)]
    return [sheet.metric, sheet.stat, repr(one.value), *bounds, one.runs, int(one.flag), int(cell.bold), ""]


def html_table(sheet: Sheet, part: slice = slice(None)) -> str:
    """The table element alone, with its title as caption. `part`: of the columns, for a table that is wider than its place."""
    heads, labels = label_columns(sheet)
    head = "".join(f'<th class="label" scope="col">{escape_html.escape(one)}</th>' for one in heads)
    head += "".join(f'<th scope="col">{escape_html.escape(one)}</th>' for one in sheet.columns[part])
    rows = []
    for row, (_, cells) in zip(labels, sheet.rows, strict=True):
        line = "".join(f'<th class="label" scope="row">{escape_html.escape(one)}</th>' for one in row)
        rows.append(f"<tr>{line}{''.join(f'<td>{_in_html(cell, sheet)}</td>' for cell in cells[part])}</tr>")
    return (
        f"<table><caption>{escape_html.escape(sheet.title)}.</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def html_notes(sheet: Sheet) -> str:
    """The footnotes as a list; '' where there is none."""
    notes = "".join(f"<li>{escape_html.escape(note)}</li>" for note in sheet.notes)
    return f'\n<ul class="notes">{notes}</ul>' * bool(notes)


def _in_html(cell: Cell | str | None, sheet: Sheet) -> str:
    """The value, and below it in small print its interval and n: columns stay narrow."""
    whole = text(cell, sheet.marks_few)
    if not isinstance(cell, Cell):
        return escape_html.escape(whole)
    value, _ = figures(cell)
    shown = f"<strong>{value}</strong>" if cell.bold else value
    return f'{shown} <span class="spread">{escape_html.escape(whole[len(value) :].strip())}</span>'
