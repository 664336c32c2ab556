"""Compose a configuration with Hydra, and translate Hydra's errors into what to type instead."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import schema
from qllm_exp.config.overrides import to_hydra_arguments
from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError, nearest

_SECRET_ENDINGS = ("key", "token", "secret", "password")


def compose_run(overrides: Sequence[str]) -> schema.RunConfig:
    """Return the validated configuration of one run.

    Args:
        overrides: as on the command line, e.g. ['env=mpe', 'train.gamma=0.95'].

    Raises:
        UserError: an override is not of the form KEY=VALUE, or the command line would reject the configuration.
    """
    from hydra import compose, initialize_config_dir

    from qllm_exp.config.load import load_run

    malformed = [override for override in overrides if "=" not in override]
    if malformed:
        raise UserError(f"{malformed[0]!r} is not of the form KEY=VALUE, e.g. env=lbf.")
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return load_run(compose("config", to_hydra_arguments(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_error(error, overrides, CONF)) from None


def explain_error(error: Exception, overrides: Iterable[str], conf: Path) -> str:
    """Return one line for an error of Hydra, with the nearest known name for a misspelt one.

    Args:
        error: raised by Hydra or OmegaConf.
        overrides: overrides of the command line.
        conf: folder of the YAML files.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, *rest = lines or [repr(error)]
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        allowed = sorted(error.options or ())
        return f"{group}={choice} is unknown.{nearest(choice, allowed)} Allowed: {', '.join(allowed)}."
    unknown = re.search(r"Could not override '(?P<key>[^']+)'", str(error))
    if unknown:
        key = unknown["key"]
        if key.lower().endswith(_SECRET_ENDINGS):
            variable = "export OPENAI_API_KEY=..."
            return f"{key!r} is not an option: API keys are read from environment variables only, e.g. {variable}"
        return f"Unknown key {key!r}.{_nearest_key(key, overrides, conf)} The files in {conf} list all keys."
    several_values = re.search(r"Ambiguous value for argument '(?P<argument>.*)'", first)
    if several_values:
        command = f"python -m qllm_exp -m {' '.join(overrides)}"
        return f"{several_values['argument']} has several values and needs a sweep. Add -m: {command}"
    if type(error).__name__ == "OverrideParseException" or first.startswith("Error parsing override"):
        override = getattr(error, "override", None) or first
        example = "env=mpe or 'dir=\"my runs\"'"
        return f"{override!r} cannot be parsed. Write KEY=VALUE and quote special characters, e.g. {example}."
    return " ".join([first, *(line for line in rest if line.startswith("full_key"))])


def _nearest_key(key: str, overrides: Iterable[str], conf: Path) -> str:
    """Return ' Did you mean KEY?' for the closest key of the groups that the command line chooses, or ''."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    overrides = list(overrides)
    choices = [o for o in overrides if "=" in o and "." not in o.partition("=")[0] and "," not in o]
    choices = [o for o in choices if not o.startswith(f"{key}=")]
    search_paths = [o for o in overrides if o.startswith("hydra.searchpath=")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            known_keys = _dotted_keys(compose("config", choices + search_paths), "")
    except (HydraException, OmegaConfBaseException):
        return ""  # the command line has further errors; this one is reported without a suggestion
    matches = difflib.get_close_matches(key, known_keys, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _dotted_keys(node: DictConfig, prefix: str) -> list[str]:
    """Return all keys of a configuration, e.g. 'train' and 'train.gamma'."""
    keys: list[str] = []
    for name in node:
        key = f"{prefix}{name!s}"
        keys.append(key)
        if isinstance(node._get_node(name), DictConfig):
            keys += _dotted_keys(node[name], f"{key}.")
    return keys
