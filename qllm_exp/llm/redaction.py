"""Hides secrets in what is printed, logged, raised or stored."""

import os
import re
import urllib.parse

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value cannot be told from ordinary words
_HIDDEN = "[hidden]"
_MASK = r"(?:\.\.+|[*•…]+)"  # what providers write in place of the middle of a key
_WORD = r"[\w-]*"
_QUERY = re.compile(r"(?i)([?&](?:api[-_]?key|key|token|access_token|signature)=)[^&\s\"']+")


def redacted(text: str, key_env: str = "") -> str:
    """A message for people, without secrets.

    Hidden are, beside what `without_secrets` hides, the beginnings and ends of the key that providers repeat in their errors
    (8 characters of it, or fewer beside a mask such as `sk-****wxyz`), and in addresses user:password@ and ?key=...
    """
    text = without_secrets(text, key_env)
    key = os.environ.get(key_env, "").strip()
    if len(key) >= _SHORTEST:
        begin, end = re.escape(key[:8]), re.escape(key[-8:])
        ends = rf"{begin}[\w.*…•-]*|[\w.*…•-]*{end}"
        masked = (
            rf"{re.escape(key[:2])}{_WORD}{_MASK}{_WORD}|{_WORD}{_MASK}{re.escape(key[-2:])}|{_WORD}\*{{3,}}{_WORD}"
        )
        text = re.sub(f"{ends}|{masked}", _HIDDEN, text)
    text = re.sub(r"(?<=://)[^/\s]+@", f"{_HIDDEN}@", text)
    return _QUERY.sub(rf"\1{_HIDDEN}", text)


def without_secrets(text: str, key_env: str = "") -> str:
    """The text with whole secrets hidden, and else unchanged.

    Secrets are the values of the environment variable `key_env` and of all whose names end in KEY, TOKEN, SECRET or
    PASSWORD. Values under 8 characters stay: they cannot be told from words.
    """
    values = {value.strip() for name, value in os.environ.items() if name == key_env or _SECRET_NAME.search(name)}
    for secret in sorted((one for one in values if len(one) >= _SHORTEST), key=len, reverse=True):
        for form in (secret, urllib.parse.quote(secret, safe="")):
            text = text.replace(form, _HIDDEN)
    return text
