"""The parts of an answer of a language model: thoughts, code blocks, code without a block; and punctuation that is not Python.

An answer is untrusted text: all work on it is linear in its length, and nothing of it is parsed as Python here.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from qllm_exp.credit.refused import FUNCTION_NAMES

MAX_REPAIRED = 100_000

_TAGS = "(?:seed:)?(?:think|thinking|thoughts?|reasoning)"
_THOUGHTS = re.compile(
    rf"(?im)(?P<start>^[ \t\ufeff]*(?:<{_TAGS}>|\[think\]|◁think▷))|(?P<end></{_TAGS}>|\[/think\]|◁/think▷)"
)
_FENCE = re.compile(r"[\s\ufeff\u200b]*(?P<marks>`{3,}|~{3,})[\s{.]*(?P<tag>(?P<name>[\w+-]*).*)")
_DEFINITION = re.compile(rf"^[ \t]*(?:async )?def[ \t]+(?:{'|'.join(FUNCTION_NAMES)})\b", re.MULTILINE)
_RETURN = re.compile(r"\breturn\b")
_OMISSION = re.compile(r"^[ \t]*#?[ \t]*\.\.\.", re.MULTILINE)
_TOP_LEVEL = re.compile(
    r"""import\s | from\s+[\w.]+\s+import\b | (?:async\s+)?def\s | class\s | @\w | \# | [A-Za-z_]\w*\s*(?::[^=]+)?=(?!=)
    | if\s+__name__ | [)\]}] | \"\"\" | '''""",
    re.VERBOSE,
)

_DOUBLE_QUOTES = '"“”„‟＂'
_SINGLE_QUOTES = "'‘’‚‛＇"
_PUNCTUATION = (
    dict.fromkeys("−–—‐‑‒－﹣", "-")
    | dict.fromkeys("\u00a0\u1680\u202f\u205f\u3000", " ")
    | {chr(code): " " for code in range(0x2000, 0x200B)}
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
    | dict.fromkeys("\u2028\u2029", "\n")
    | dict(zip("×÷＋＊／＝＜＞（）［］｛｝，．：；", "*/+*/=<>()[]{},.:;", strict=True))
    | {"≤": "<=", "≥": ">=", "≠": "!="}
)
_TYPOGRAPHIC = re.compile(f"[{''.join(map(re.escape, _PUNCTUATION))}{_DOUBLE_QUOTES[1:]}{_SINGLE_QUOTES[1:]}]")
_SPECIAL = re.compile(f"{_TYPOGRAPHIC.pattern}|[#\"']")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        tag: first word behind the opening fence, in lower case, e.g. 'python'; '' for none.
        source: the lines between the fences, without common indentation.
        is_closed: whether the block has a closing fence.
    """

    tag: str
    source: str
    is_closed: bool


def split_thoughts(answer: str) -> tuple[str, str]:
    """Split an answer into what it says and the thoughts before it.

    Thoughts are what stands between <think> and </think>, or between other tags of that kind. Without an opening tag they
    begin with the answer, without a closing tag they end with it. An opening tag counts at the start of a line only.

    Args:
        answer: the whole answer.

    Returns:
        The answer without thoughts, and the thoughts.
    """
    visible, thoughts = list[str](), list[str]()
    is_thinking, position = False, 0
    for tag in _THOUGHTS.finditer(answer):
        text, position = answer[position : tag.start()], tag.end()
        if tag["end"] and not is_thinking:
            thoughts += [*visible, text]
            visible.clear()
        else:
            (thoughts if is_thinking else visible).append(text)
        is_thinking = not tag["end"]
    (thoughts if is_thinking else visible).append(answer[position:])
    return "".join(visible), "\n".join(thoughts)


def split_blocks(text: str) -> tuple[list[Block], str]:
    """Split a text into its fenced blocks and the rest.

    A block starts with at least three backticks or tildes, at any indentation, with any text behind them. It ends with a line
    of at least as many of the same character and nothing else.

    Args:
        text: the text, with any kind of line ends.

    Returns:
        The blocks in order, and the text without them.
    """
    blocks, rest, lines = list[Block](), list[str](), list[str]()
    marks, tag = "", ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        fence = _FENCE.match(line)
        if not marks:
            if fence is None or (fence["marks"][0] == "`" and "`" in fence["tag"]):  # code within a line
                rest.append(line)
            else:
                marks = fence["marks"]
                tag = fence["name"].lower()
        elif fence is not None and fence["marks"].startswith(marks) and not fence["tag"].strip():
            blocks.append(Block(tag, _dedent(lines), is_closed=True))
            lines, marks = [], ""
        else:
            lines.append(line)
    if marks:
        blocks.append(Block(tag, _dedent(lines), is_closed=False))
    return blocks, "\n".join(rest)


def holds_function(source: str) -> bool:
    """Whether a source defines a credit-assignment function and returns something: not its signature alone."""
    definition = _DEFINITION.search(source)
    return definition is not None and _RETURN.search(source, definition.end()) is not None


def is_sketch(source: str) -> bool:
    """Whether a source leaves something out: it has a line that starts with '...', or a comment that does."""
    return _OMISSION.search(source) is not None


def unfenced_source(text: str) -> str:
    """Return the code around the definition of a credit-assignment function in a text without fences; '' if there is none.

    The code consists of all neighbouring statements at the indentation of the definition, with what is indented below them.
    """
    text = plain_punctuation(text)
    definition = _DEFINITION.search(text)
    if definition is None:
        return ""
    lines, number = text.split("\n"), text.count("\n", 0, definition.start())
    indent = _indentation(lines[number])
    statements, chosen = list[list[str]](), 0
    for i, line in enumerate(lines):
        if not statements or (line.strip() and _indentation(line) <= indent):
            statements.append([])
        statements[-1].append(line)
        if i == number:
            chosen = len(statements) - 1
    first = last = chosen
    while first > 0 and _is_statement(statements[first - 1][0], indent):
        first -= 1
    while last + 1 < len(statements) and _is_statement(statements[last + 1][0], indent):
        last += 1
    return _dedent([line for statement in statements[first : last + 1] for line in statement])


def plain_punctuation(source: str) -> str:
    """Replace typographic signs outside of strings and comments, where Python refuses them, by the ones of Python.

    These are minus signs and dashes, quotes, comparison and multiplication signs, full-width punctuation, special spaces, and
    characters without width. Strings and comments stay as they are, apart from typographic quotes around a string. A source
    of more than MAX_REPAIRED characters is returned as it is: the verifier refuses it anyway.
    """
    if len(source) > MAX_REPAIRED or _TYPOGRAPHIC.search(source) is None:
        return source
    return "".join(_plain_parts(source))


def _plain_parts(source: str) -> Iterator[str]:
    """Yield the parts of a source with plain punctuation."""
    position = 0
    while match := _SPECIAL.search(source, position):
        start, sign = match.start(), match.group()
        yield source[position:start]
        if sign == "#":
            position = source.find("\n", start)
            position = len(source) if position < 0 else position
            yield source[start:position]
        elif sign in _DOUBLE_QUOTES or sign in _SINGLE_QUOTES:
            quotes = _DOUBLE_QUOTES if sign in _DOUBLE_QUOTES else _SINGLE_QUOTES
            is_plain = sign == quotes[0]
            width = 3 if len(source) >= start + 3 and all(char in quotes for char in source[start : start + 3]) else 1
            end = _string_end(source, start + width, quotes[0] if is_plain else quotes, width)
            is_closed = end < len(source) and source[end] != "\n"
            position = end + width if is_closed else end
            yield quotes[0] * width + source[start + width : end] + quotes[0] * width * is_closed
        else:
            position = start + 1
            yield _PUNCTUATION[sign]
    yield source[position:]


def _string_end(source: str, start: int, quotes: str, width: int) -> int:
    """Return where the closing quotes of a string are, or the end of the line or of the source if there are none.

    Args:
        source: the source.
        start: where the content of the string begins.
        quotes: the characters that close it.
        width: how many of them do, 1 or 3.
    """
    line_end = "" if width == 3 else "|\n"
    for match in re.compile(rf"\\.|[{quotes}]{{{width}}}{line_end}", re.DOTALL).finditer(source, start):
        if not match.group().startswith("\\"):
            return match.start()
    return len(source)


def _is_statement(line: str, indent: int) -> bool:
    """Whether a line at this indentation starts a statement that may stand beside a function, rather than prose."""
    return _indentation(line) == indent and _TOP_LEVEL.match(line, indent) is not None


def _indentation(line: str) -> int:
    """Return the number of spaces and tabs at the start of a line."""
    return len(line) - len(line.lstrip(" \t"))


def _dedent(lines: list[str]) -> str:
    """Join lines of code with plain punctuation, without common indentation and without blank lines around them."""
    source = textwrap.dedent(plain_punctuation("\n".join(lines))).strip("\n").rstrip()
    return source + "\n" if source else ""
