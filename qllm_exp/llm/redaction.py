"""Redaction of secrets in text that is printed, logged, raised or stored.

Such text comes from servers, so the time is linear in its length, whatever it contains.
"""

import os
import re
import urllib.parse
from collections.abc import Iterable

MAX_MESSAGE = 8_192  # characters of a message that are looked at
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value cannot be distinguished from ordinary words
_HIDDEN = "[hidden]"
_MASK = re.compile(r"\.\.+|[*•…]+")  # replaces the middle of a key in messages of providers
_STARS = "***"
_WORD = re.compile(r"[\w-]*")
_KEY_PART = re.compile(r"[\w.*…•-]*")
_USER = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"(?i)([?&](?:api[-_]?key|key|token|access_token|signature)=)[^&\s\"']+")

_Span = tuple[int, int]


def redact(text: str, key_env: str = "") -> str:
    """Hide secrets, and parts of them, in a message.

    In addition to what `hide_secrets` hides, that is: the start or end of the key, which providers repeat in their errors (8
    characters of it, or fewer beside a mask such as `sk-****wxyz`); and user:password@ and ?key=... in addresses.

    Args:
        text: the message; only its first MAX_MESSAGE characters are returned, without a word that the limit would divide.
        key_env: name of the environment variable with the key; '' for none.
    """
    if len(text) > MAX_MESSAGE:
        last_space = max(text.rfind(space, 0, MAX_MESSAGE) for space in " \n\t")  # a divided key is not recognised
        text = text[:last_space] if last_space > 0 else _HIDDEN
    text = hide_secrets(text, key_env)
    key = os.environ.get(key_env, "").strip()
    if len(key) >= _SHORTEST:
        text = _hide(text, [*_spans_of_ends(text, key), *_spans_of_masks(text, key)])
    text = _USER.sub(f"{_HIDDEN}@", text)
    return _QUERY.sub(rf"\1{_HIDDEN}", text)


def hide_secrets(text: str, key_env: str = "") -> str:
    """Hide whole secrets in a text, and leave the rest unchanged.

    Secrets are the values of `key_env` and of all environment variables whose names end in KEY, TOKEN, SECRET, PASSWORD or
    PASSWD, also with _ID behind. Values shorter than 8 characters are not hidden: they cannot be distinguished from words.

    Args:
        text: any text.
        key_env: name of the environment variable with the key; '' for none.
    """
    values = {value.strip() for name, value in os.environ.items() if name == key_env or _SECRET_NAME.search(name)}
    for secret in sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True):
        for form in (secret, urllib.parse.quote(secret, safe="")):
            text = text.replace(form, _HIDDEN)
    return text


def _spans_of_ends(text: str, key: str) -> list[_Span]:
    """Return where the start or the end of a key is, 8 characters of it with everything that belongs to the same word."""
    start, end, spans, position = key[:_SHORTEST], key[-_SHORTEST:], list[_Span](), 0
    while (begin := text.find(start, position)) >= 0:
        position = _run_end(_KEY_PART, text, begin + len(start))
        spans.append((begin, position))
    backwards, position = text[::-1], 0
    while (begin := backwards.find(end[::-1], position)) >= 0:
        position = _run_end(_KEY_PART, backwards, begin + len(end))
        spans.append((len(text) - position, len(text) - begin))
    return spans


def _spans_of_masks(text: str, key: str) -> list[_Span]:
    """Return where a masked key is: a mask with 2 characters of the key beside it, or a mask of three stars."""
    spans, backwards = list[_Span](), text[::-1]
    for mask in _MASK.finditer(text):
        word_begin = len(text) - _run_end(_WORD, backwards, len(text) - mask.start())
        word_end = _run_end(_WORD, text, mask.end())
        key_begin = text.find(key[:2], max(0, word_begin - len(key[:2])), mask.start())
        if _STARS in mask.group():
            spans.append((word_begin, word_end))
        if key_begin >= 0:
            spans.append((key_begin, word_end))
        if text.startswith(key[-2:], mask.end()):
            spans.append((word_begin, mask.end() + 2))
    return spans


def _run_end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return the end of the run of characters that starts at `position`."""
    match = pattern.match(text, position)
    return position if match is None else match.end()


def _hide(text: str, spans: Iterable[_Span]) -> str:
    """Replace each span, and spans that overlap as a whole, by [hidden]."""
    parts, position = list[str](), 0
    for begin, end in sorted(spans):
        if begin >= position:
            parts += [text[position:begin], _HIDDEN]
        position = max(position, end)
    return "".join([*parts, text[position:]])
