"""Configurations of many runs from a few of Hydra's.

Hydra takes about 65 ms to compose a configuration, and checking its types 17 ms more: 14 minutes for 10,000 runs. Here each
distinct choice of groups is composed once; a plain value that varies (`seed=3`, `train.learning_rate=1e-3`) is then set in the
checked configuration. Whatever is not as plain as that goes Hydra's way, so that the outcome is the same.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import DictConfig, OmegaConf

from qllm_exp.config import registry, schema
from qllm_exp.config.load import check_field, load_run
from qllm_exp.errors import UserError

Overrides = tuple[str, ...]

_PLAIN = re.compile(r"[a-z_]+(\.[a-z_]+)*")


class _HydrasWay(Exception):
    """A value that is better left to Hydra."""


class Composer:
    """From overrides to checked configurations.

    Args:
        compose: Hydra's way from overrides to a configuration. combinations: all that will be asked for.
    """

    def __init__(self, compose: Callable[[Overrides], DictConfig], combinations: Sequence[Overrides]) -> None:
        self._compose = compose
        self._bases: dict[Overrides, schema.RunConfig | None] = {}
        self._varying = _varying_values(combinations)

    def __call__(self, overrides: Overrides) -> schema.RunConfig:
        """The run that the overrides describe. Raises what `compose` raises, and UserError as `config.load` does."""
        base: list[str] = []
        values: list[tuple[str, str]] = []
        for one in overrides:
            key, _, value = one.partition("=")
            if key in self._varying:
                values.append((key, value))
            else:
                base.append(one)
        run = self._base(tuple(base))
        try:
            if run is None:
                raise _HydrasWay
            for key, value in values:
                run = _with_value(run, key.split("."), _parsed(value))
        except _HydrasWay:
            return load_run(self._compose(overrides))
        return run

    def _base(self, overrides: Overrides) -> schema.RunConfig | None:
        """The run without the values that vary; None where it cannot be had, or where other values are made from them."""
        if overrides not in self._bases:
            run = None
            if self._varying:
                try:
                    composed = self._compose(overrides)
                    run = None if _interpolates(composed) else load_run(composed)
                except (
                    Exception
                ):  # a value that is missing without the ones that vary; the whole says what is wrong, if anything
                    run = None
            self._bases[overrides] = run
        return self._bases[overrides]


def varying_keys(combinations: Sequence[Overrides]) -> set[str]:
    """Keys whose values differ among the combinations."""
    seen: dict[str, str] = {}
    return {
        key
        for one in combinations
        for key, _, value in (override.partition("=") for override in one)
        if seen.setdefault(key, value) != value
    }


def _varying_values(combinations: Sequence[Overrides]) -> set[str]:
    """Keys of plain values that differ among the combinations, each given once and no part of another key."""
    shapes = {tuple(override.partition("=")[0] for override in one) for one in combinations}  # few: one per case
    scalars = {f.name for f in dataclasses.fields(schema.RunConfig) if not dataclasses.is_dataclass(f.type)}

    def alone(key: str, among: Sequence[str]) -> bool:
        keys = [other.lstrip("+~") for other in among]
        others = [other for other in keys if other != key and other not in registry.GROUPS]
        return keys.count(key) <= 1 and not any(o.startswith(f"{key}.") or key.startswith(f"{o}.") for o in others)

    varying = varying_keys(combinations)
    return {
        k for k in varying if _PLAIN.fullmatch(k) and ("." in k or k in scalars) and all(alone(k, s) for s in shapes)
    }


def _interpolates(composed: DictConfig) -> bool:
    ours = OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"])

    def walk(node: Any) -> bool:
        if isinstance(node, dict):
            return any(map(walk, node.values()))
        return any(map(walk, node)) if isinstance(node, list) else isinstance(node, str) and "${" in node

    return walk(OmegaConf.to_container(ours, resolve=False))


@cache
def _parsed(value: str) -> Any:
    parsed = OverridesParser.create().parse_override(f"k={value}").value()
    return parsed.text if isinstance(parsed, QuotedString) else parsed


_KINDS: dict[type, dict[str, tuple[set[Any], dict[str, Any]]]] = {}


def _kinds(cls: type) -> dict[str, tuple[set[Any], dict[str, Any]]]:
    """For each field: the plain types it takes, and its bounds."""
    if cls in _KINDS:
        return _KINDS[cls]
    hints = typing.get_type_hints(cls)
    kinds = {}
    for one in dataclasses.fields(cls):
        hint = hints[one.name]
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        kinds[one.name] = (set(typing.get_args(hint)) if union else {hint}, dict(one.metadata))
    _KINDS[cls] = kinds
    return kinds


def _with_value(node: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a configuration with one value changed, if it takes that value as it is and the value is within bounds."""
    head, *rest = path
    taken, bounds = _kinds(type(node)).get(head, (set(), {}))
    if rest:
        inner = getattr(node, head, None)
        if not dataclasses.is_dataclass(inner):
            raise _HydrasWay
        return dataclasses.replace(node, **{head: _with_value(inner, rest, value)})
    if type(value) is int and float in taken and int not in taken:
        value = float(value)
    plain = (
        value is None or isinstance(value, (int, float)) or (isinstance(value, str) and not re.search(r"[$?]", value))
    )
    if not plain or (type(value) not in taken and Any not in taken):
        raise _HydrasWay
    changed = dataclasses.replace(node, **{head: value})
    try:
        check_field(changed, head, bounds)
    except UserError:
        raise _HydrasWay from None  # for its words, with the whole key
    return changed
