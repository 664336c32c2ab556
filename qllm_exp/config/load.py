"""From a composed configuration to a checked `Run`, and from a `Run` to what identifies it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import registry, schema
from qllm_exp.errors import UserError, nearest

_TYPES: dict[tuple[str, str], type] = {("tracking", "wandb"): schema.WandbConfig, ("llm", "bundled"): schema.LlmConfig}
_GROUP_TYPES: dict[str, type] = {"train": schema.TrainConfig, "tracking": schema.TrackingConfig}


def config_class(group: str, name: str, backend: str = "") -> Any:
    """The dataclass that describes the options of a choice.

    Args:
        group: one of GROUPS.
        name: of the choice.
        backend: of a language model that is asked, the module that asks it.

    Raises:
        UserError: there is no such choice, or its module has no dataclass `Config`.
    """
    if (group, name) in _TYPES:
        return _TYPES[group, name]
    if group in _GROUP_TYPES:
        if name not in registry.choices(group):
            allowed = ", ".join(registry.choices(group))
            raise UserError(f"{group}={name!r} is unknown.{nearest(name, registry.choices(group))} Allowed: {allowed}.")
        return _GROUP_TYPES[group]
    module = registry.find(group, backend or name)
    config = getattr(module, "Config", None)
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{group}.name={name!r}: the module needs a dataclass named Config that describes its options.")
    return config


# The fields of a run that no choice of a group fills.
_WITHOUT_CHOICES = dataclasses.make_dataclass(
    "RunConfig",
    [
        (one.name, one.type, dataclasses.field(default=one.default, default_factory=one.default_factory))
        for one in dataclasses.fields(schema.RunConfig)
        if one.name not in registry.GROUPS
    ],
)


def load_run(composed: DictConfig | dict[str, Any]) -> schema.RunConfig:
    """Check types, names, allowed values and bounds. Raises UserError for the first thing that is wrong."""
    given = OmegaConf.create(composed) if isinstance(composed, dict) else composed
    top = {f.name for f in dataclasses.fields(schema.RunConfig)}
    for key in given:
        if key != "hydra" and key not in top:
            raise UserError(f"Unknown key {key!r}.{nearest(str(key), top)}")
    missing = sorted(str(k) for k in OmegaConf.missing_keys(given) if not str(k).startswith("hydra."))
    if "train.source" in missing:
        raise UserError(
            f"train=paper has no published settings for env={given.env.name} with algorithm={given.algorithm.name}. "
            "Use train=fair, or env=mpe, lbf or matrix (or grf, with algorithm=q_learning)."
        )
    if missing:
        raise UserError(f"No value for {', '.join(missing)}. Give one on the command line, e.g. {missing[0]}=...")
    parts: dict[str, Any] = {}
    for one in dataclasses.fields(schema.RunConfig):
        if one.name in registry.GROUPS and one.name in given:
            name, backend = (str(given[one.name].get(key, "")) for key in ("name", "backend"))
            parts[one.name] = _typed(config_class(one.name, name, backend), given[one.name], one.name)
    others = {k: given[k] for k in top if k not in parts and k in given}
    typed = _typed(_WITHOUT_CHOICES, OmegaConf.create(others), "")
    run = schema.RunConfig(**parts, **{one.name: getattr(typed, one.name) for one in dataclasses.fields(typed)})
    _check(run, "")
    if run.train.buffer_episodes < run.train.batch_episodes:
        raise UserError(
            f"train.buffer_episodes={run.train.buffer_episodes} never holds the train.batch_episodes="
            f"{run.train.batch_episodes} that an update learns from. Make it larger."
        )
    return run


def _typed(cls: type, given: Any, at: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    for key in given:
        if key not in known:
            full = f"{at}.{key}" if at else str(key)
            raise UserError(f"Unknown key {full!r}.{nearest(str(key), known)} Known: {', '.join(sorted(known))}.")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        where = ".".join(part for part in (at, str(key)) if part)
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error


def _check(node: Any, at: str) -> None:
    for one in dataclasses.fields(node):
        path = f"{at}.{one.name}" if at else one.name
        if dataclasses.is_dataclass(getattr(node, one.name)):
            _check(getattr(node, one.name), path)
        check_field(node, one.name, one.metadata, path)


def check_field(node: Any, name: str, meta: Mapping[str, Any], path: str = "") -> None:
    """UserError when a field's value is none of those allowed, or out of bounds. `path`: the whole key, for the message."""
    value = getattr(node, name)
    if "allowed" in meta and value not in meta["allowed"]:
        allowed = ", ".join(map(str, meta["allowed"]))
        raise UserError(f"{path}={value!r} is not allowed.{nearest(str(value), meta['allowed'])} Allowed: {allowed}.")
    if "low" in meta and value is not None and not meta["low"] <= value <= meta["high"]:
        raise UserError(f"{path}={value} is out of bounds: it goes from {meta['low']} to {meta['high']}.")
    if "auto_or_at_least" in meta and value != "auto" and not _whole(value, meta["auto_or_at_least"]):
        raise UserError(f"{path}={value!r}: give a whole number from {meta['auto_or_at_least']}, or auto.")
    if "device" in meta:
        _check_device(value)


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_device(device: str) -> None:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise UserError(f"device={device!r} is unknown. Allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")


def with_num_envs(run: schema.RunConfig, device_kind: str) -> schema.RunConfig:
    """The same run with `env.num_envs=auto` replaced: by its algorithm's own figure, where an update learns from the latest
    episodes, and else by the simulator's for 'cpu' or 'cuda'.
    """
    if run.env.num_envs != "auto":
        return run
    own = getattr(run.algorithm, "num_envs", None)
    count = run.env.auto_num_envs[device_kind] if own is None else own
    return dataclasses.replace(run, env=dataclasses.replace(run.env, num_envs=count))


def to_dict(run: schema.RunConfig) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings; `load_run` reads them back."""
    return dataclasses.asdict(run)


def identity(run: schema.RunConfig, tfcaf_hash: str | None) -> dict[str, Any]:
    """What defines a run: environment, task, algorithm, mixer, TFCAF, training, seed; not where or when it runs.

    Args:
        tfcaf_hash: content hash of the credit-assignment function, None for a mixer that has none.
    """
    kept = identity_of(run)
    kept["train"].pop("name")
    kept["train"].pop("source")  # two presets with equal settings are the same run
    kept["mixer"].pop("file", None)  # the function counts, not the path it was read from
    for group in ("llm", "tfcaf"):
        kept.pop(group)  # likewise the function, not who wrote it or how
    if tfcaf_hash is not None:
        kept["tfcaf"] = tfcaf_hash
    return kept


def identity_of(node: Any) -> dict[str, Any]:
    """The part of a configuration that says what, not where or how."""
    kept: dict[str, Any] = {}
    for name in _identifying(type(node)):
        value = getattr(node, name)
        kept[name] = identity_of(value) if hasattr(value, "__dataclass_fields__") else value
    return kept


def not_identity(node: Any, at: str = "") -> list[str]:
    """Dotted keys of a configuration, or their beginnings, that say where or how and not what: the others of `identity_of`."""
    keys: list[str] = []
    for one in dataclasses.fields(node):
        value = getattr(node, one.name)
        nested = dataclasses.is_dataclass(value)
        key = f"{at}{one.name}{'.' if nested else ''}"
        if not one.metadata.get("identity", True):
            keys.append(key)
        elif nested:
            keys += not_identity(value, key)
    return keys


_IDENTIFYING: dict[type, tuple[str, ...]] = {}


def _identifying(cls: type) -> tuple[str, ...]:
    if cls not in _IDENTIFYING:
        _IDENTIFYING[cls] = tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("identity", True))
    return _IDENTIFYING[cls]


def run_name(run: schema.RunConfig, tfcaf_hash: str | None) -> str:
    """Folder name of a run: readable parts, then eight digits of the hash of everything that defines it."""
    digest = hashlib.sha256(json.dumps(identity(run, tfcaf_hash), sort_keys=True).encode()).hexdigest()[:8]
    parts = (run.env.name, run.env.task, run.algorithm.name, run.mixer.name, f"s{run.seed}", digest)
    return "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in part) for part in parts)


def method_name(algorithm: str, mixer: str) -> str:
    """Q-learning goes by the name of its mixer, an algorithm that mixes nothing by its own, any other by both."""
    if algorithm == "q_learning":
        return mixer
    return algorithm if mixer == "none" else f"{algorithm}+{mixer}"


def of_name(method: str) -> tuple[str, str]:
    """Algorithm and mixer of what `method_name` made of them."""
    algorithm, plus, mixer = method.partition("+")
    if plus:
        return algorithm, mixer
    return (method, "none") if method in registry.choices("algorithm") else ("q_learning", method)
