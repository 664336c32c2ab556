"""Python source as HTML, with the words of the language told apart."""

import io
import keyword
import tokenize

from qllm_exp.results.report.parts import Html, joined, tag

_CLASSES = {tokenize.COMMENT: "c", tokenize.STRING: "s", tokenize.NUMBER: "n"}


def highlighted(source: str) -> Html:
    """The source with comments, texts, numbers, keywords and names of functions in spans; as plain text where it is no Python."""
    lines = source.split("\n")
    parts: list[str] = []
    row = column = 0
    before = ""

    def upto(end_row: int, end_column: int) -> str:
        """The source from where the last part ended."""
        nonlocal row, column
        if (end_row, end_column) <= (row, column):
            return ""
        between = [*lines[row:end_row], lines[end_row][:end_column]]
        between[0] = between[0][column:]
        row, column = end_row, end_column
        return "\n".join(between)

    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = _class(token, before)
            if kind:
                parts += [upto(token.start[0] - 1, token.start[1])]
                parts += [tag("span", upto(token.end[0] - 1, token.end[1]), class_=kind)]
            before = token.string
    except (tokenize.TokenError, SyntaxError):
        return joined([source])
    return joined([*parts, upto(len(lines) - 1, len(lines[-1]))])


def _class(token: tokenize.TokenInfo, before: str) -> str:
    if token.type != tokenize.NAME:
        return _CLASSES.get(token.type, "")
    if keyword.iskeyword(token.string):
        return "k"
    return "d" if before == "def" else ""
