"""The one exception that means "the user can mend this": its message is printed alone, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says what was given, what is allowed and what to type instead."""


class RunFailed(UserError):
    """A run ended with an error; others of its sweep may have gone well."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """' Did you mean X?' for the allowed word closest to the given one, or '' when none is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is one of `allowed`, else raise a UserError that lists them."""
    allowed = list(allowed)
    if given not in allowed:
        raise UserError(f"{what}={given!r} is unknown.{nearest(given, allowed)} Allowed: {', '.join(allowed)}.")
    return given
