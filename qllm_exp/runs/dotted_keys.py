"""Nested mappings and their dotted keys, such as 'train.learning_rate'."""

from collections.abc import Mapping
from typing import Any


def flatten(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys.

    Args:
        node: nested mappings.
        prefix: of all keys, with its dot.
    """
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings from dotted keys: the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return nested
