"""Environments, algorithms and mixers are modules found by name: one that ships with the package, or one of the user's own."""

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType

from qllm_exp.errors import UserError, nearest

_ROOMS = {"llm": "llm"}  # groups whose folder is not called by their plural


def find(group: str, name: str, shipped: Iterable[str]) -> ModuleType:
    """The module `qllm_exp.<group>s.<name>` for a shipped name, else the importable module of that name.

    Args:
        group: 'env', 'algorithm', 'mixer' or 'llm'. shipped: the names that come with the package.

    Raises:
        UserError: there is no such module.
    """
    shipped = list(shipped)
    if name in shipped:
        return importlib.import_module(f"qllm_exp.{_ROOMS.get(group, group + 's')}.{name}")
    try:
        known = bool(name) and importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # a parent package that is not there
        known = False
    if not known:
        own = "or the name of a module of your own on PYTHONPATH"
        raise UserError(f"{group}={name!r} is unknown.{nearest(name, shipped)} Allowed: {', '.join(shipped)}, {own}.")
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module of the user's own may do
        raise UserError(f"{group}={name!r} cannot be imported: {type(error).__name__}: {error}") from error
