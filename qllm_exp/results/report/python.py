"""Syntax highlighting of Python source as HTML."""

import io
import keyword
import tokenize

from qllm_exp.results.report.parts import Html, concat, tag
from qllm_exp.utils.text import inert_lines

_CLASSES = {tokenize.COMMENT: "c", tokenize.STRING: "s", tokenize.NUMBER: "n"}


class _SourceReader:
    """Reads source piece by piece, up to given positions."""

    def __init__(self, source: str) -> None:
        self._lines = source.split("\n")
        self._row = self._column = 0

    def read_until(self, row: int, column: int) -> str:
        """Return the source from the end of the last piece to a position; rows and columns start at 0."""
        if (row, column) <= (self._row, self._column):
            return ""
        lines = [*self._lines[self._row : row], self._lines[row][:column]]
        lines[0] = lines[0][self._column :]
        self._row, self._column = row, column
        return "\n".join(lines)

    def read_rest(self) -> str:
        """Return the source from the end of the last piece to its end."""
        return self.read_until(len(self._lines) - 1, len(self._lines[-1]))


def highlight(source: str) -> Html:
    """Return source, made inert, with spans around comments, strings, numbers, keywords and function names.

    If the source is not valid Python, it is returned as plain text.
    """
    source = inert_lines(source)
    reader = _SourceReader(source)
    parts: list[str] = []
    previous = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            class_ = _css_class(token, previous)
            if class_:
                start_row, start_column = token.start
                end_row, end_column = token.end
                parts.append(reader.read_until(start_row - 1, start_column))
                parts.append(tag("span", reader.read_until(end_row - 1, end_column), class_=class_))
            previous = token.string
    except (tokenize.TokenError, SyntaxError):
        return concat([source])
    return concat([*parts, reader.read_rest()])


def _css_class(token: tokenize.TokenInfo, previous: str) -> str:
    """Return the CSS class of a token, given the text of the previous token; '' for none."""
    if token.type != tokenize.NAME:
        return _CLASSES.get(token.type, "")
    if keyword.iskeyword(token.string):
        return "k"
    return "d" if previous == "def" else ""
