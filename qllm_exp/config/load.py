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


def group_class(group: str, name: str) -> type:
    """The schema of one choice of a group: for a module of the user's own, its dataclass `Config`."""
    known = schema.CHOICES[group]
    if name in known:
        return known[name]
    module = registry.find(group, name, known)
    if not dataclasses.is_dataclass(getattr(module, "Config", None)):
        raise UserError(f"{group}.name={name!r}: the module needs a dataclass named Config that describes its options.")
    config: type = module.Config
    return config


def load_run(composed: DictConfig | dict[str, Any]) -> schema.Run:
    """Check types, names, allowed values and bounds. Raises UserError for the first thing that is wrong."""
    given = OmegaConf.create(composed) if isinstance(composed, dict) else composed
    top = {f.name for f in dataclasses.fields(schema.Run)}
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
    for one in dataclasses.fields(schema.Run):
        if one.name in schema.CHOICES and one.name in given:
            name = str(given[one.name].get("name", ""))
            parts[one.name] = _typed(group_class(one.name, name), given[one.name], one.name)
    scalars = {k: given[k] for k in top if k not in parts and k in given}
    typed: schema.Run = _typed(schema.Run, OmegaConf.create(scalars), "")
    run: schema.Run = dataclasses.replace(typed, **parts)
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


def with_num_envs(run: schema.Run, device_kind: str) -> schema.Run:
    """The same run with `env.num_envs=auto` replaced: by its algorithm's own figure, where an update learns from the latest
    episodes, and else by the simulator's for 'cpu' or 'cuda'.
    """
    if run.env.num_envs != "auto":
        return run
    own = run.algorithm.num_envs if isinstance(run.algorithm, schema.ActorCritic) else None
    count = run.env.auto_num_envs[device_kind] if own is None else own
    return dataclasses.replace(run, env=dataclasses.replace(run.env, num_envs=count))


def to_dict(run: schema.Run) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings; `load_run` reads them back."""
    return dataclasses.asdict(run)


def identity(run: schema.Run, tfcaf_hash: str | None) -> dict[str, Any]:
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


_IDENTIFYING: dict[type, tuple[str, ...]] = {}


def _identifying(cls: type) -> tuple[str, ...]:
    if cls not in _IDENTIFYING:
        _IDENTIFYING[cls] = tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("identity", True))
    return _IDENTIFYING[cls]


def run_name(run: schema.Run, tfcaf_hash: str | None) -> str:
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
    return (method, "none") if method in schema.CHOICES["algorithm"] else ("q_learning", method)
