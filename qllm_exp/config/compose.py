"""Compose a configuration with Hydra, and translate Hydra's errors into what to type instead."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.config import registry, schema
from qllm_exp.config.overrides import to_hydra_arguments
from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError, nearest

_SECRET_ENDINGS = ("key", "token", "secret", "password")
_FIELD_NAMES = {  # what PyMARL, EPyMARL, CleanRL and RLlib call an option
    "lr": "train.learning_rate",
    "t_max": "train.total_steps",
    "total_timesteps": "train.total_steps",
    "steps": "train.total_steps",
    "batch_size": "train.batch_episodes",
    "buffer_size": "train.buffer_episodes",
    "batch_size_run": "env.num_envs",
    "n_envs": "env.num_envs",
    "optimizer": "train.optimiser",
    "hidden_dim": "train.hidden",
    "hidden_size": "train.hidden",
    "rnn_hidden_dim": "train.hidden",
    "agent": "train.network",
    "max_grad_norm": "train.grad_norm_clip",
    "standardize_rewards": "train.standardise_rewards",
    "test_interval": "train.evaluation.every",
    "test_nepisode": "train.evaluation.episodes",
    "epsilon_finish": "algorithm.epsilon_end",
    "epsilon_anneal_time": "algorithm.epsilon_steps",
    "target_update_interval": "algorithm.target_period",
    "target_update_interval_or_tau": "algorithm.target_tau",
    "tau": "algorithm.target_tau",
    "entropy_coef": "algorithm.entropy",
    "q_nstep": "algorithm.n_step",
    "gae_lambda": "algorithm.td_lambda",
    "obs_agent_id": "algorithm.agent_id",
    "obs_last_action": "algorithm.last_action",
    "mixing_embed_dim": "mixer.embed",
    "hypernet_embed": "mixer.hypernet",
    "map_name": "env.task",
    "scenario": "env.task",
    "time_limit": "env.episode_limit",
    "use_cuda": "device",
    "alg": "algorithm",
    "algo": "algorithm",
    "environment": "env",
    "name": "sweep.name",
    "tags": "sweep.tags",
    "wandb": "tracking",
    "seeds": "seed",
    "selection": "tfcaf.search.method",
}


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


def compose_launcher(overrides: Sequence[str]) -> dict[str, Any]:
    """Return 'name' and options of the launcher that a command line chooses: local or slurm.

    Args:
        overrides: as on the command line, e.g. ['hydra/launcher=slurm', 'hydra.launcher.partition=cpu'].

    Raises:
        UserError: as `compose_run`.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            config = compose("config", to_hydra_arguments(overrides), return_hydra_config=True)
            options = cast(dict[str, Any], OmegaConf.to_container(config.hydra.launcher, resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_error(error, overrides, CONF)) from None
    target = options.pop("_target_").rpartition(".")[2]
    return {"name": target.removesuffix("Launcher").lower()} | options


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
        hint = _other_group(group, choice) or nearest(choice, allowed)
        return f"{group}={choice} is unknown.{hint} Allowed: {', '.join(allowed)}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "primary config" in first:
        name = error.missing_cfg_file
        return f"--config-name {name}: there is no {name}.yaml in a folder of --config-dir. Add --config-dir FOLDER."
    unknown = re.search(r"Could not override '(?P<key>[^']+)'", str(error))
    if unknown:
        key = unknown["key"]
        if key.lower().endswith(_SECRET_ENDINGS):
            variable = "export OPENAI_API_KEY=..."
            return f"{key!r} is not an option: API keys are read from environment variables only, e.g. {variable}"
        return f"Unknown key {key!r}.{_key_hint(key, overrides, conf)} The files in {conf} list all keys."
    several_values = re.search(r"Ambiguous value for argument '(?P<argument>.*)'", first)
    if several_values:
        command = f"python -m qllm_exp -m {' '.join(overrides)}"
        return f"{several_values['argument']} has several values and needs a sweep. Add -m: {command}"
    if type(error).__name__ == "OverrideParseException" or first.startswith("Error parsing override"):
        override = getattr(error, "override", None) or first
        example = "env=mpe or 'dir=\"my runs\"'"
        return f"{override!r} cannot be parsed. Write KEY=VALUE and quote special characters, e.g. {example}."
    return " ".join([first, *(line for line in rest if line.startswith("full_key"))])


def _other_group(group: str, choice: str) -> str:
    """Return ' qmix is a mixer: type mixer=qmix.' for a choice of another group, e.g. algorithm=qmix; '' otherwise."""
    for other in registry.GROUPS:
        if other != group and choice.lower() in registry.choices(other):
            return f" {choice.lower()!r} is a choice of {other}: type {other}={choice.lower()}."
    return ""


def _key_hint(key: str, overrides: Iterable[str], conf: Path) -> str:
    """Return what to type instead of an unknown key, or ''.

    That is the option that other codes of the field call so, the option of that name in another group, what the option needs,
    if other choices have it, or the closest key.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    overrides = list(overrides)
    choices = [o for o in overrides if "=" in o and "." not in o.partition("=")[0] and "," not in o]
    choices = [o for o in choices if not o.startswith(f"{key}=")]
    search_paths = [o for o in overrides if o.startswith("hydra.searchpath=")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            config = compose("config", choices + search_paths)
    except (HydraException, OmegaConfBaseException):
        return ""  # the command line has further errors; this one is reported without a suggestion
    known_keys = [known for known in _dotted_keys(config, "") if known != key]
    alias = _FIELD_NAMES.get(key.rpartition(".")[2].lower(), "")
    if alias in known_keys:
        return f" Did you mean {alias!r}?"
    group, _, name = (alias or key).rpartition(".")
    matches = [known for known in known_keys if known.rpartition(".")[2] == name.lower()]
    owners = registry.owners([group] if group in registry.GROUPS else [] if matches else registry.GROUPS, name)
    if owners:
        chosen = dict.fromkeys(f"{group}={config[group].name}" for group, _ in owners)
        choices_with_it = " or ".join(f"{group}={choice}" for group, choice in owners)
        return f" It is an option of {choices_with_it}, not of {' or '.join(chosen)}."
    matches = matches or difflib.get_close_matches(key, known_keys, n=1, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def _dotted_keys(node: DictConfig, prefix: str) -> list[str]:
    """Return all keys of a configuration, e.g. 'train' and 'train.gamma'."""
    keys: list[str] = []
    for name in node:
        key = f"{prefix}{name!s}"
        keys.append(key)
        if isinstance(node._get_node(name), DictConfig):
            keys += _dotted_keys(node[name], f"{key}.")
    return keys
