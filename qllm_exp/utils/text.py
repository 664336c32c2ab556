"""Counts and durations as text."""


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


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text, which whitespace separates."""
    return frozenset(text.split())
