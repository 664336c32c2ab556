"""Errors that the user can fix: their message is printed alone, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, what is allowed and what to type instead."""


class RunFailed(UserError):
    """A run failed; other runs of its sweep may have finished."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the allowed word closest to `word`, or '' if none is close. Case does not count."""
    by_lower_case = {name.lower(): name for name in allowed}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    return f" Did you mean {by_lower_case[matches[0]]!r}?" if matches else ""


def choose(option: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed.

    Args:
        option: name of the option, for the message.
        value: value of the option.
        allowed: all allowed values.

    Raises:
        UserError: the value is not allowed; the message lists the allowed ones.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{option}={value!r} is unknown.{nearest(value, allowed)} Allowed: {', '.join(allowed)}.")
    return value
