"""Counts, durations and signals as text, and text from outside that is shown."""

import re
import signal
import unicodedata

_NOT_PLAIN = re.compile(r"[^ -~]")  # everything but printable ASCII
_NOT_PLAIN_LINES = re.compile(r"[^ -~\n\t]")
_ACTIVE = frozenset(
    {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, formats (bidi), surrogates, unassigned, separators of lines
)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: '1 run', '3 runs'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a duration as text: '45 s', '3 min 20 s', '2 h 05 min'."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def signal_name(number: int) -> str:
    """Return the name of a signal: 'SIGKILL'; 'signal 35' for a real-time signal, which has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text, which whitespace separates."""
    return frozenset(text.split())


def inert(text: object) -> str:
    """Return text from outside as one line that cannot act on a terminal, a page or a figure.

    Whatever is not drawn as itself is shown as its escape, such as \\x1b, \\n or \\u202e: control characters, with the escape
    sequences that they start; characters that change the direction of text or have no width; halves of surrogate pairs.

    Args:
        text: text, or an object such as a path or an error whose `str` is shown.
    """
    return _NOT_PLAIN.sub(_visible, str(text))


def inert_lines(text: object) -> str:
    """Return `inert` of every line of a text. Line feeds and tabs are kept; a carriage return before a line feed is removed."""
    return _NOT_PLAIN_LINES.sub(_visible, str(text).replace("\r\n", "\n"))


def _visible(match: re.Match[str]) -> str:
    """Return a character, or its escape if it is not drawn as itself."""
    character = match[0]
    if unicodedata.category(character) not in _ACTIVE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def excerpt(text: object, length: int = 80) -> str:
    """Return `inert` of a text, cut to `length` characters and '...'."""
    whole = str(text)
    return inert(whole) if len(whole) <= length else f"{inert(whole[:length])}..."
