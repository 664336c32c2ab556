"""Composing a configuration with Hydra, and its errors with what to type instead."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import schema
from qllm_exp.config.overrides import arrange
from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError, nearest


def compose_run(overrides: Sequence[str]) -> schema.RunConfig:
    """The checked configuration of one run, from overrides as on the command line: ['env=mpe', 'train.gamma=0.95'].

    Raises:
        UserError: for an override that is not KEY=VALUE, and for whatever the command would refuse in the configuration.
    """
    from hydra import compose, initialize_config_dir

    from qllm_exp.config.load import load_run

    wrong = [one for one in overrides if "=" not in one]
    if wrong:
        raise UserError(f"{wrong[0]!r} is no KEY=VALUE, e.g. env=lbf.")
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return load_run(compose("config", arrange(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides, CONF)) from None


def explain(error: Exception, overrides: Iterable[str], conf: Path) -> str:
    """One line for an error of Hydra's, with the nearest right word where a name was misspelt."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        allowed = sorted(error.options or ())
        return f"{group}={choice} is unknown.{nearest(choice, allowed)} Allowed: {', '.join(allowed)}."
    unknown = re.search(r"Could not override '(?P<key>[^']+)'", str(error))
    if unknown and unknown["key"].lower().endswith(("key", "token", "secret", "password")):
        return f"{unknown['key']!r} is not taken here: keys are read from the environment only, e.g. export OPENAI_API_KEY=..."
    if unknown:
        return f"Unknown key {unknown['key']!r}.{_nearest_key(unknown['key'], overrides, conf)} The files in {conf} list them all."
    several = re.search(r"Ambiguous value for argument '(?P<argument>.*)'", first)
    if several:
        return f"{several['argument']} is more than one run: add -m (python -m qllm_exp -m {' '.join(overrides)})."
    if type(error).__name__ == "OverrideParseException" or first.startswith("Error parsing override"):
        given = getattr(error, "override", None) or first
        return f"{given!r} cannot be read: write KEY=VALUE, and quote other signs, e.g. env=mpe or 'dir=\"my runs\"'."
    return " ".join([first, *(line for line in rest if line.startswith("full_key"))])


def _nearest_key(key: str, overrides: Iterable[str], conf: Path) -> str:
    """The known key closest to `key`, among those of the groups that the command line chooses."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    chosen = [o for o in overrides if "=" in o and "." not in o.partition("=")[0] and "," not in o]
    groups = [o for o in chosen if not o.startswith(f"{key}=")]
    groups += [o for o in overrides if o.startswith("hydra.searchpath=")]
    known: list[str] = []

    def walk(node: DictConfig, at: str) -> None:
        for name in node:
            full = f"{at}{name!s}"
            known.append(full)
            if isinstance(node._get_node(name), DictConfig):
                walk(node[name], f"{full}.")

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            walk(compose("config", groups), "")
    except (
        HydraException,
        OmegaConfBaseException,
    ):  # the line has other faults too; this one is reported without a guess
        return ""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
