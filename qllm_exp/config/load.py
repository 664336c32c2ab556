"""Validate a composed configuration, and derive the identity and the name of its run."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import registry, schema
from qllm_exp.config.unused import unused_options
from qllm_exp.errors import UserError, nearest

_TYPES: dict[tuple[str, str], type] = {("tracking", "wandb"): schema.WandbConfig, ("llm", "bundled"): schema.LlmConfig}
_GROUP_TYPES: dict[str, type] = {"train": schema.TrainConfig, "tracking": schema.TrackingConfig}

_MISSING = "???"  # stands for the value of an option that has to be given

# What runs did before an option existed, by group and choice ('*': any). A run of that time has no value of the option, neither in
# its configuration nor in its name.
_BEFORE_OPTION: dict[tuple[str, str], dict[str, Any]] = {
    ("env", "lbf"): {"mask_ineffective": True},
    ("env", "mpe"): {"rules": "vmas"},
    ("env", "*"): {"state": "features"},
    ("mixer", "tfcaf"): {"trainable_constants": False},
}


def config_class(group: str, name: str, backend: str = "") -> Any:
    """Return the dataclass that describes the options of a choice.

    Args:
        group: one of GROUPS.
        name: name of the choice.
        backend: for a language model that is called, the module that calls it.

    Raises:
        UserError: there is no such choice, or its module does not define a dataclass named Config.
    """
    if (group, name) in _TYPES:
        return _TYPES[group, name]
    if group in _GROUP_TYPES:
        allowed = registry.choices(group)
        if name not in allowed:
            raise UserError(f"{group}={name!r} is unknown.{nearest(name, allowed)} Allowed: {', '.join(allowed)}.")
        return _GROUP_TYPES[group]
    module = registry.find(group, backend or name)
    config = getattr(module, "Config", None)
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{group}.name={name!r}: the module needs a dataclass named Config that describes its options.")
    return config


# The options of a run that belong to no group.
_UNGROUPED_OPTIONS = dataclasses.make_dataclass(
    "RunConfig",
    [
        (field.name, field.type, dataclasses.field(default=field.default, default_factory=field.default_factory))
        for field in dataclasses.fields(schema.RunConfig)
        if field.name not in registry.GROUPS
    ],
)


def load_run(composed: DictConfig | dict[str, Any]) -> schema.RunConfig:
    """Return the configuration of a run with checked types, names, allowed values and bounds.

    Args:
        composed: as Hydra composes it, or as `to_dict` returns it.

    Raises:
        UserError: the first problem found.
    """
    config = _resolved(composed)
    run_fields = dataclasses.fields(schema.RunConfig)
    top_level = {field.name for field in run_fields}
    for key in config:
        if key not in top_level:
            raise UserError(f"Unknown key {key!r}.{nearest(key, top_level)}")
    _check_complete(config)
    config = _with_steps_per_update(config)
    groups: dict[str, Any] = {}
    for field in run_fields:
        if field.name in registry.GROUPS and field.name in config:
            options = config[field.name]
            if not isinstance(options, dict):
                allowed = ", ".join(registry.choices(field.name))
                raise UserError(f"{field.name}={options} is not a choice. Allowed: {allowed}.")
            cls = config_class(field.name, str(options.get("name", "")), str(options.get("backend", "")))
            groups[field.name] = _to_dataclass(cls, options, field.name)
    ungrouped = {key: config[key] for key in top_level if key not in groups and key in config}
    others = _to_dataclass(_UNGROUPED_OPTIONS, ungrouped, "")
    run = schema.RunConfig(
        **groups, **{field.name: getattr(others, field.name) for field in dataclasses.fields(others)}
    )
    _check(run, "")
    too_small = run.train.buffer_episodes < run.train.batch_episodes
    if too_small and "train.batch_episodes" not in unused_in(run):
        raise UserError(
            f"train.buffer_episodes={run.train.buffer_episodes} is smaller than "
            f"train.batch_episodes={run.train.batch_episodes}, so that no update could take place. "
            f"Use train.buffer_episodes={run.train.batch_episodes} or more."
        )
    return run


def with_older_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run with the options that did not exist yet when it was written, at what it then did.

    Args:
        config: content of a run's config.yaml.
    """
    for (group, name), before in _BEFORE_OPTION.items():
        options = config.get(group)
        if isinstance(options, dict) and name in (options.get("name"), "*"):
            config = config | {group: before | options}
    procedure = config.get("tfcaf")
    if isinstance(procedure, dict) and "selection" in procedure:  # before there were searches
        kept = {name: value for name, value in procedure.items() if name not in ("selection", "probe")}
        method = "best_of" if procedure["selection"] == "probe" else "none"
        config = config | {"tfcaf": {"search": {"method": method}} | kept}
    return config


def _resolved(composed: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without Hydra's own part, with values in place of references such as ${env.name}.

    References are resolved in the whole configuration, because a group on its own does not have the values of the others.

    Args:
        composed: as of `load_run`.

    Raises:
        UserError: a reference leads nowhere.
    """
    if isinstance(composed, dict):
        if _is_plain(composed):
            return {key: value for key, value in composed.items() if key != "hydra"}
        composed = OmegaConf.create(composed)
    values: dict[str, Any] = {}
    for name in (key for key in composed if key != "hydra"):
        try:
            if OmegaConf.is_missing(composed, name):
                values[str(name)] = _MISSING
            else:
                value = composed[name]
                values[str(name)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            key = str(getattr(error, "full_key", "") or name)
            reason = str(error).splitlines()[0]
            raise UserError(f"{key}: {reason}. A reference names a key of the run, such as ${{env.name}}.") from error
    return values


def _is_plain(value: Any) -> bool:
    """Whether a value consists of dictionaries, lists, numbers, None and text without references."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float) or (type(value) is str and "${" not in value)


def _missing_keys(node: Any, prefix: str) -> list[str]:
    """Return the dotted keys without a value (`???`), below a part of a configuration whose key is `prefix`."""
    if node == _MISSING:
        return [prefix]
    if isinstance(node, list):
        return [key for index, item in enumerate(node) for key in _missing_keys(item, f"{prefix}[{index}]")]
    items = node.items() if isinstance(node, dict) else ()
    return [key for name, item in items for key in _missing_keys(item, f"{prefix}.{name}" if prefix else str(name))]


def _check_complete(config: dict[str, Any]) -> None:
    """Raise UserError if an option that must be given has no value."""
    missing = sorted(_missing_keys(config, ""))
    train = config.get("train")
    if "train.source" in missing or (isinstance(train, dict) and train.get("source", "") is None):
        raise UserError(
            f"train=paper has no published settings for env={config['env']['name']} with "
            f"algorithm={config['algorithm']['name']}. "
            "Use train=fair, or env=mpe, lbf or matrix (or grf, with algorithm=q_learning)."
        )
    if missing:
        raise UserError(f"No value for {', '.join(missing)}. Set it on the command line: {missing[0]}=...")


def _with_steps_per_update(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with a number of steps in place of `train.steps_per_update=8 episodes`."""
    train, env = config.get("train"), config.get("env")
    if not isinstance(train, dict) or not isinstance(env, dict):
        return config
    episodes = re.fullmatch(r"(\d+) episodes?", str(train.get("steps_per_update")))
    if episodes is None or not isinstance(env.get("episode_limit"), int):
        return config
    return config | {"train": train | {"steps_per_update": int(episodes[1]) * env["episode_limit"]}}


def _to_dataclass(cls: type, options: dict[str, Any], prefix: str) -> Any:
    """Convert options to their dataclass.

    Args:
        cls: dataclass of the options.
        options: part of a configuration, without references.
        prefix: key of that part, for messages; '' for the top level.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    options = _checked_options(cls, options, prefix)
    with contextlib.suppress(_NeedsConversion):
        return _instance(cls, options)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), options))
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        path = ".".join(part for part in (prefix, key) if part)
        reason = _several_values(path, options.get(key)) or f"{path}: {str(error).splitlines()[0]}"
        raise UserError(reason) from error


class _NeedsConversion(Exception):
    """A value is not of the type of its option, and OmegaConf has to convert or refuse it."""


def _instance(cls: type, options: dict[str, Any]) -> Any:
    """Return a dataclass whose options have values of their types already, as OmegaConf would in 30 times the time.

    Raises:
        _NeedsConversion: an option has another type, or keeps a part of its default.
    """
    values = {}
    for field in dataclasses.fields(cls):
        factory = None if field.default_factory is dataclasses.MISSING else field.default_factory
        if field.name in options:
            value = options[field.name]
        else:
            value = {} if dataclasses.is_dataclass(factory) else field.default if factory is None else factory()
        if not field.init or value is dataclasses.MISSING:
            raise _NeedsConversion
        values[field.name] = _value(_type_hints(cls)[field.name], value, factory)
    return cls(**values)


def _value(hint: Any, value: Any, factory: Any) -> Any:
    """Return a value of a type, copied.

    Args:
        hint: the type of an option.
        value: its value.
        factory: makes its default value; None if that is a constant.

    Raises:
        _NeedsConversion: as `_instance`.
    """
    args = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and type(value) is dict and factory is hint:
        return _instance(cast(type, hint), value)
    if typing.get_origin(hint) is list and type(value) is list:
        return [_value(args[0], item, None) for item in value]
    if hint == dict[str, Any] and factory is dict and type(value) is dict and _is_plain(value):
        return copy.deepcopy(value)
    if isinstance(hint, types.UnionType) and len(args) == 2 and args[1] is type(None):  # X | None
        return None if value is None else _value(args[0], value, None)
    if hint is float and type(value) is int:
        return float(value)
    is_scalar = hint in (bool, int, float, str) and type(value) is hint
    if not (is_scalar or (hint is Any and not isinstance(value, (dict, list)))) or not _is_plain(value):
        raise _NeedsConversion
    return value


def _checked_options(cls: type, options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return options with 2000000 in place of 2e6 where a whole number is meant.

    Args:
        cls: dataclass of the options.
        options: the options.
        prefix: key of the options, for messages.

    Raises:
        UserError: a key is unknown, or true or false stands where text is meant, e.g. `name: yes` in a YAML file.
    """
    hints = _type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    converted = {}
    for name, value in options.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if name not in fields:
            owners = registry.owners([prefix], str(name)) if prefix in registry.GROUPS else []
            choices_with_it = " or ".join(f"{group}={choice}" for group, choice in owners)
            hint = f" It is an option of {choices_with_it}." if owners else nearest(str(name), fields)
            raise UserError(f"Unknown key {path!r}.{hint} Known: {', '.join(sorted(fields))}.")
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = _checked_options(cast(type, hint), value, path)
        elif hint is int or "auto_or_at_least" in fields[name].metadata:
            value = whole_number(value)
        elif hint is str and isinstance(value, bool):
            text = str(value).lower()
            raise UserError(
                f"{path}={text} is not text. If {text} is meant as text, quote it in the YAML file: '{text}'."
            )
        converted[name] = value
    return converted


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def whole_number(value: Any) -> Any:
    """Return 2000000 for 2e6; a value that is not a whole number is returned as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _several_values(path: str, value: Any) -> str:
    """Return the message for a value that looks like several of an option that has one, e.g. seed=0:5; '' for another value."""
    ends = re.fullmatch(r"(\d+)\s*(?::|\.\.+|\u2013|to)\s*(\d+)", str(value))
    if isinstance(value, list):
        values = ",".join(map(str, value))
        return f"{path}={value} is a list, but {path} has one value. For several runs type -m {path}={values}."
    if ends:
        return f"{path}={value} is not a range. For one run each from {ends[1]} to {ends[2]} type -m {path}={ends[1]}-{ends[2]}."
    return ""


def _check(node: Any, prefix: str) -> None:
    """Check the values of a configuration and of everything below it."""
    for field in dataclasses.fields(node):
        path = f"{prefix}.{field.name}" if prefix else field.name
        if dataclasses.is_dataclass(getattr(node, field.name)):
            _check(getattr(node, field.name), path)
        check_field(node, field.name, field.metadata, path)


def check_field(node: Any, name: str, meta: Mapping[str, Any], path: str = "") -> None:
    """Raise UserError if the value of a field is not allowed or out of bounds.

    Args:
        node: configuration that has the field.
        name: name of the field.
        meta: metadata of the field, as `schema.one_of` and `schema.number` write it.
        path: dotted key of the field, for the message.
    """
    value = getattr(node, name)
    if "allowed" in meta and value not in meta["allowed"]:
        allowed = ", ".join(map(str, meta["allowed"]))
        raise UserError(f"{path}={value!r} is not allowed.{nearest(str(value), meta['allowed'])} Allowed: {allowed}.")
    if "low" in meta and value is not None and not meta["low"] <= value <= meta["high"]:
        bounds = f"at least {meta['low']}" if meta["high"] == float("inf") else f"{meta['low']} to {meta['high']}"
        raise UserError(f"{path}={value} is out of bounds. Allowed: {bounds}.")
    if "auto_or_at_least" in meta and value != "auto" and not _is_integer_from(value, meta["auto_or_at_least"]):
        raise UserError(
            f"{path}={value!r} is not allowed. Allowed: whole numbers from {meta['auto_or_at_least']}, or auto."
        )
    if "device" in meta:
        _check_device(value)


def _is_integer_from(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_device(device: str) -> None:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise UserError(f"device={device!r} is unknown. Allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")


def with_num_envs(run: schema.RunConfig, device_kind: str) -> schema.RunConfig:
    """Return the run with a number in place of `env.num_envs=auto`.

    The number is `algorithm.num_envs` if an update of the algorithm learns from the latest episodes. Otherwise it is the default
    of the environment for the kind of device.

    Args:
        run: configuration of the run.
        device_kind: 'cpu' or 'cuda'.
    """
    if run.env.num_envs != "auto":
        return run
    num_envs = getattr(run.algorithm, "num_envs", None)
    if num_envs is None:
        num_envs = run.env.auto_num_envs[device_kind]
    return dataclasses.replace(run, env=dataclasses.replace(run.env, num_envs=num_envs))


def to_dict(run: schema.RunConfig) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists, numbers and strings, which `load_run` reads back."""
    return dataclasses.asdict(run)


def identity(run: schema.RunConfig, tfcaf_hash: str | None) -> dict[str, Any]:
    """Return what defines a run: environment, task, algorithm, mixer, TFCAF, training, seed; not where or when it runs.

    Options without effect (`unused_options`) do not define it either.

    Args:
        run: configuration of the run.
        tfcaf_hash: content hash of the credit-assignment function, None for a mixer without one.
    """
    kept = identifying_options(run)
    for (group, name), before in _BEFORE_OPTION.items():
        if name in (kept[group]["name"], "*"):  # a run that does what runs did before has the name of such a run
            for key, value in before.items():
                if kept[group].get(key) == value:
                    kept[group].pop(key)
    for key in unused_in(
        run
    ):  # the default stands for any value, so that most runs keep the names that they had before
        group, _, name = key.partition(".")
        if name in kept[group]:
            kept[group][name] = _default(getattr(run, group), name)
    kept["train"].pop("name")
    kept["train"].pop("source")  # two presets with equal settings define the same run
    kept["mixer"].pop("file", None)  # the function counts, not the path it was read from
    for group in ("llm", "tfcaf"):
        kept.pop(group)  # the function counts, not which model wrote it or how
    if tfcaf_hash is not None:
        kept["tfcaf"] = tfcaf_hash
    return kept


def unused_in(run: schema.RunConfig) -> set[str]:
    """Return the dotted keys of the options that have no effect in a run."""

    def value(key: str) -> Any:
        node: Any = run
        for name in key.split("."):
            node = getattr(node, name, None)
        return node

    return unused_options(value)


def _default(node: Any, name: str) -> Any:
    """Return the default value of a field of a dataclass."""
    return next(field.default for field in dataclasses.fields(node) if field.name == name)


def identifying_options(node: Any) -> dict[str, Any]:
    """Return the options of a configuration that define what is run, without those that say where or how."""
    kept: dict[str, Any] = {}
    for name in _identifying_fields(type(node)):
        value = getattr(node, name)
        kept[name] = identifying_options(value) if hasattr(value, "__dataclass_fields__") else value
    return kept


def task_and_rules(env: schema.EnvConfig) -> str:
    """Return environment and task, with the options of the environment that are not the default ones, but for its number of copies.

    Returns under different rules cannot be compared, so those of one sweep are compared within this:
    'pursuit/10x10-8h-8p env.penalty=-1.0'.
    """
    default = identifying_options(type(env)())
    options = {key: value for key, value in identifying_options(env).items() if key not in ("name", "task", "num_envs")}
    rules = [f"env.{key}={value}" for key, value in options.items() if value != default[key]]
    return " ".join([f"{env.name}/{env.task}", *rules])


def non_identifying_keys(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys that `identifying_options` leaves out: options that say where or how, not what.

    Args:
        node: configuration, or a part of one.
        prefix: beginning of the keys of that part, e.g. 'env.'.

    Returns:
        Keys; for a group that is left out as a whole, its prefix, e.g. 'tracking.'.
    """
    keys: list[str] = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        nested = dataclasses.is_dataclass(value)
        key = f"{prefix}{field.name}." if nested else f"{prefix}{field.name}"
        if not field.metadata.get("identity", True):
            keys.append(key)
        elif nested:
            keys += non_identifying_keys(value, key)
    return keys


_IDENTIFYING_FIELDS: dict[type, tuple[str, ...]] = {}  # cached: a sweep may have tens of thousands of runs


def _identifying_fields(cls: type) -> tuple[str, ...]:
    if cls not in _IDENTIFYING_FIELDS:
        names = tuple(field.name for field in dataclasses.fields(cls) if field.metadata.get("identity", True))
        _IDENTIFYING_FIELDS[cls] = names
    return _IDENTIFYING_FIELDS[cls]


def run_name(run: schema.RunConfig, tfcaf_hash: str | None) -> str:
    """Return the folder name of a run: readable parts and eight hexadecimal digits of the hash of its identity.

    Args:
        run: configuration of the run.
        tfcaf_hash: as for `identity`.
    """
    digest = hashlib.sha256(json.dumps(identity(run, tfcaf_hash), sort_keys=True).encode()).hexdigest()[:8]
    parts = (run.env.name, run.env.task, run.algorithm.name, run.mixer.name, f"s{run.seed}", digest)
    return "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in part) for part in parts)


def method_name(algorithm: str, mixer: str) -> str:
    """Return the short name of a method.

    Q-learning is named after its mixer, an algorithm without a mixer by itself, and any other by both: 'riit+tfcaf'.
    """
    if algorithm == "q_learning":
        return mixer
    return algorithm if mixer == "none" else f"{algorithm}+{mixer}"


def parse_method_name(method: str) -> tuple[str, str]:
    """Return the algorithm and the mixer of a method, the inverse of `method_name`."""
    algorithm, plus, mixer = method.partition("+")
    if plus:
        return algorithm, mixer
    return (method, "none") if method in registry.choices("algorithm") else ("q_learning", method)
