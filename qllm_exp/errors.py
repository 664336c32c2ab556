"""Errors that the user can fix: their message is printed alone, without a traceback."""

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parent
_STANDARD_LIBRARY = Path(os.__file__).parent
_MIN_PART = 3  # characters of a part that identifies a longer word
_INSTALLED = frozenset({"site-packages", "dist-packages"})  # folders of installed packages


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, what is allowed and what to type instead."""


DIVERGED = "Training diverged"  # start of the message of a run whose parameters are no longer numbers


class RunFailed(UserError):
    """A run failed; other runs of its sweep may have finished."""


class ContractError(UserError):
    """An environment, a mixer or an algorithm breaks its contract. The message says which part of it, in one line."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the allowed word closest to `word`, or '' if none is close. Case does not count.

    A word that begins or contains `word` is close, however long it is: '8x8' stands for 'lbf/8x8-2p-2f-coop-2s'.
    """
    by_lower_case, lower = {name.lower(): name for name in allowed}, word.lower()
    matches = difflib.get_close_matches(lower, by_lower_case, n=1, cutoff=0.6)
    if not matches and len(word) >= _MIN_PART:
        longer = [candidate for candidate in by_lower_case if lower in candidate]
        matches = sorted(longer, key=lambda candidate: (not candidate.startswith(lower), len(candidate)))
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


def user_traceback(error: BaseException) -> str:
    """Return an error that code of the user's own raised: its type and message, then its traceback from the user's line on.

    The frames of this package are left out. Code of the user's own is what this package calls outside itself, the standard
    library and the installed packages: an environment, a mixer or an algorithm on PYTHONPATH.

    Args:
        error: an exception that was raised.

    Returns:
        Lines of text; '' if the error does not come from code of the user's own.
    """
    frames = _user_frames(error)
    if not frames:
        return ""
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_list(frames)).rstrip()}"


def error_line(error: BaseException) -> str:
    """Return type and message of an error; for one that code of the user's own raised, also the file and the line."""
    frames = _user_frames(error)
    place = f" ({frames[0].filename}, line {frames[0].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error from the first one in code of the user's own on, without those of this package."""
    frames = list(traceback.extract_tb(error.__traceback__))
    inside = [number for number, frame in enumerate(frames) if _is_in_package(frame.filename)]
    called = frames[inside[0] :] if inside else []  # what is before called this package, e.g. a notebook
    first = next((number for number, frame in enumerate(called) if _is_own(frame.filename)), len(called))
    return [frame for frame in called[first:] if not _is_in_package(frame.filename)]


def _is_in_package(file: str) -> bool:
    return Path(file).is_relative_to(_PACKAGE)


def _is_own(file: str) -> bool:
    """Whether a file is neither of this package nor of the standard library nor of an installed package."""
    path = Path(file)
    is_library = path.is_relative_to(_STANDARD_LIBRARY) or not _INSTALLED.isdisjoint(path.parts)
    return not file.startswith("<") and not is_library and not _is_in_package(file)
