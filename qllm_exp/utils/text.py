"""Amounts in words."""


def count(number: int, what: str) -> str:
    """'1 run', '3 runs'."""
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '2 h 05 min'."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())
