"""Redaction of secrets in text that is printed, logged, raised or stored."""

import os
import re
import urllib.parse

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value cannot be distinguished from ordinary words
_HIDDEN = "[hidden]"
_MASK = r"(?:\.\.+|[*•…]+)"  # replaces the middle of a key in messages of providers
_WORD = r"[\w-]*"
_QUERY = re.compile(r"(?i)([?&](?:api[-_]?key|key|token|access_token|signature)=)[^&\s\"']+")


def redact(text: str, key_env: str = "") -> str:
    """Hide secrets, and parts of them, in a message.

    In addition to what `hide_secrets` hides, that is: the start or end of the key, which providers repeat in their errors (8
    characters of it, or fewer beside a mask such as `sk-****wxyz`); and user:password@ and ?key=... in addresses.

    Args:
        text: the message.
        key_env: name of the environment variable with the key; '' for none.
    """
    text = hide_secrets(text, key_env)
    key = os.environ.get(key_env, "").strip()
    if len(key) >= _SHORTEST:
        start, end = re.escape(key[:8]), re.escape(key[-8:])
        ends = rf"{start}[\w.*…•-]*|[\w.*…•-]*{end}"
        masked = (
            rf"{re.escape(key[:2])}{_WORD}{_MASK}{_WORD}|{_WORD}{_MASK}{re.escape(key[-2:])}|{_WORD}\*{{3,}}{_WORD}"
        )
        text = re.sub(f"{ends}|{masked}", _HIDDEN, text)
    text = re.sub(r"(?<=://)[^/\s]+@", f"{_HIDDEN}@", text)
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
