"""Options whose values are text, which may look like a number: the key 8609e12 of a function, the name 1_000, the tag 1.10."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from qllm_exp.config import registry, schema
from qllm_exp.errors import UserError

_LAUNCHER = tuple(f"hydra.launcher.{name}" for name in ("partition", "account", "qos", "constraint", "python", "setup"))
_TEXT_TYPES = (str, list[str])
_BACKENDS = ("online", "folder")  # modules that define options of language models
# An element of a value: quoted; or up to a comma, bracket or quote, with any references (${...}).
_ELEMENT = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\$\{[^}]*\}|[^,\[\](){}'"])+""")
_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9](_?\d)*)")


def quote(argument: str, arguments: Sequence[str] = ()) -> str:
    """Return an override with quotes around text that Hydra would read as a number or a truth value, and change.

    'mixer.file=8609e12' becomes "mixer.file='8609e12'"; overrides of options that are not text are returned unchanged.

    Args:
        argument: the override.
        arguments: the whole command line, whose choices decide which options there are.
    """
    key, equals, value = argument.partition("=")
    quoted = _ELEMENT.sub(lambda match: _quote_element(match[0]), value)
    if not equals or quoted == value or not is_text(key, arguments):
        return argument
    return f"{key}={quoted}"


def is_text(key: str, arguments: Sequence[str] = ()) -> bool:
    """Return whether the value of an option is text, or a list of texts.

    Args:
        key: dotted key of the option.
        arguments: the whole command line; a user's own choices in it have options of their own.
    """
    key = key.lstrip("+")
    group, _, rest = key.partition(".")
    if group not in registry.GROUPS:
        return key in _LAUNCHER or _is_text_field(schema.RunConfig, key.split("."))
    own_choices = [name for override in arguments if override.startswith(f"{group}=") for name in _values(override)]
    modules = _BACKENDS if group == "llm" else own_choices if group in registry.SUBPACKAGES else ()
    for name in modules:
        with suppress(UserError):  # a YAML file may have another name than its module
            registry.find(group, name)
    base = typing.get_type_hints(schema.RunConfig)[group]
    return any(_is_text_field(cls, rest.split(".")) for cls in (base, *_subclasses(base)))


def _values(override: str) -> list[str]:
    return override.partition("=")[2].split(",")


def _subclasses(cls: Any) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _is_text_field(cls: type, path: Sequence[str]) -> bool:
    hint: Any = typing.get_type_hints(cls).get(path[0])
    if len(path) == 1:
        return hint in _TEXT_TYPES
    return dataclasses.is_dataclass(hint) and _is_text_field(typing.cast(type, hint), path[1:])


def _quote_element(element: str) -> str:
    text = element.strip()
    return element.replace(text, f"'{text}'") if text and _as_hydra_reads(text) != text else element


def _as_hydra_reads(text: str) -> str | None:
    """Return the text of the value that Hydra makes of an unquoted word; None for a truth value."""
    if text.lower() in ("true", "false"):
        return None
    try:
        return str(int(text) if _WHOLE_NUMBER.fullmatch(text) else float(text))
    except ValueError:
        return text
