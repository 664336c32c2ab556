"""The command line before Hydra reads it: ranges such as seed=0-4, shorthands, and the runs of a sweep."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qllm_exp.config.registry import GROUPS, choices
from qllm_exp.config.text_options import is_text, quote
from qllm_exp.errors import UserError

_RANGE = r"\d+(?:-\d+)?"
_RANGE_LIST = re.compile(rf"{_RANGE}(?:,{_RANGE})*")
_RANGES = re.compile(rf"(?P<key>[+~]{{0,2}}[\w./@-]+)=(?P<value>{_RANGE}(?:,{_RANGE})*)")

_MULTIRUN = ("-m", "--multirun")
_WITH_OPTIONAL_VALUE = ("--info", "-i")
_WITH_VALUE = ("--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p", "--experimental-rerun")
CONFIG_DIR_OPTIONS = ("--config-dir", "-cd")
_OPEN_ENDED = ("env.options.", "env.options=", "hydra.launcher.sbatch")  # options that no YAML file lists
_NONE_OF_GROUP = {"mixer": "none", "tracking": "local", "llm": "bundled"}  # the choice that stands for nothing


def expand_ranges(argument: str, arguments: Sequence[str] = ()) -> str:
    """Expand ranges of whole numbers: 'seed=0-2,7' becomes 'seed=0,1,2,7'. Other arguments are returned unchanged.

    Args:
        argument: the override.
        arguments: the whole command line, whose choices decide which options are text.

    Raises:
        UserError: the end of a range is smaller than its start.
    """
    match = _RANGES.fullmatch(argument)
    if match is None or "-" not in match["value"] or match["key"].startswith("hydra."):  # 1-12 is a time limit
        return argument
    if is_text(match["key"], arguments):  # a name, such as 2026-11
        return argument
    values: list[str] = []
    for part in match["value"].split(","):
        low, _, high = part.partition("-")
        if high and int(high) < int(low):
            raise UserError(f"{argument}: the range {part} runs backwards. Write {match['key']}={high}-{low}.")
        values += map(str, range(int(low), int(high or low) + 1))
    return f"{match['key']}={','.join(dict.fromkeys(values))}"


def to_hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Rewrite the command line in the form that Hydra expects.

    - `-m` and other options may stand anywhere; Hydra wants them first.
    - Each `--config-dir FOLDER` becomes an entry of Hydra's search path.
    - `--dry-run` becomes `sweep.dry_run=true`.
    - `~` at the start of a value becomes the home folder.
    - Options of a simulator and of sbatch get `++`, since no YAML file lists them.
    - In a sweep, an option of a choice that varies becomes a list; see `_options_as_lists`.

    - A text that looks like a number keeps its letters; see `text_options`.

    Raises:
        UserError: the folder of --config-dir does not exist, or a group has no choice (mixer=null).
    """
    is_sweep = any(argument in _MULTIRUN for argument in arguments)
    others = [argument for argument in arguments if argument not in _MULTIRUN]
    others = _replace_config_dirs(others)
    others = ["sweep.dry_run=true" if argument == "--dry-run" else argument for argument in others]
    others = [re.sub(r"(?<==)~(?=/|$)", str(Path.home()), argument) for argument in others]
    for argument in others:
        _check_has_choice(argument)
    others = [quote(argument, others) for argument in others]
    others = [f"++{argument}" if argument.startswith(_OPEN_ENDED) else argument for argument in others]
    others = _options_first(others)
    if not is_sweep:
        return others
    multirun = next(argument for argument in arguments if argument in _MULTIRUN)
    return [multirun, *_options_as_lists(others)]


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Return the options of Hydra, each with its value, then the overrides, and last an option whose value may be left out."""
    options: list[str] = []
    last: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("-"):
            others.append(argument)
            continue
        if argument in _WITH_OPTIONAL_VALUE:
            last.append(argument)
            continue
        options.append(argument)
        if argument in _WITH_VALUE:
            options += [value for value in (next(remaining, None),) if value is not None]
    return options + others + last


def _options_as_lists(arguments: Sequence[str]) -> list[str]:
    """Write the options of a swept choice as lists of one value.

    For ['algorithm=lica,riit', 'algorithm.evaluation=greedy'] the second argument becomes 'algorithm.evaluation=choice(greedy)'.
    Hydra would look for a plain value in the default choice, which may not have that option.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "~"))]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    swept_prefixes = tuple(f"{o.key_or_group}." for o in parsed.values() if o.is_sweep_override())
    rewritten = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        override = parsed.get(argument)
        if override is None or not value or override.is_sweep_override():
            rewritten.append(argument)
        elif override.key_or_group.startswith(swept_prefixes):
            rewritten.append(f"{key}=choice({value})")
        else:
            rewritten.append(argument)
    return rewritten


def _check_has_choice(argument: str) -> None:
    """Raise UserError if an override leaves a group of a run without a choice, as mixer=null and ~mixer do."""
    key, _, value = argument.partition("=")
    group = key.lstrip("~")
    removes = key.startswith("~") or any(choice.strip().lower() in ("null", "") for choice in value.split(","))
    if group not in GROUPS or not removes:
        return
    if group in _NONE_OF_GROUP:
        raise UserError(
            f"{argument}: a run has a choice of {group}. To have none, type {group}={_NONE_OF_GROUP[group]}."
        )
    raise UserError(f"{argument}: a run has a choice of {group}. Allowed: {', '.join(choices(group))}.")


def search_path_override(folders: Sequence[str | Path], paths: Sequence[str] = ()) -> str:
    """Return the override that adds a user's own folders of YAML files to the choices of the package.

    Args:
        folders: the folders; if several have a choice of one name, the first of them counts.
        paths: further entries of Hydra's search path, e.g. 'pkg://my_package.conf'.

    Raises:
        UserError: a folder does not exist.
    """
    missing = [folder for folder in folders if not Path(folder).expanduser().is_dir()]
    if missing:
        raise UserError(f"--config-dir {missing[0]}: this folder does not exist.")
    entries = [*(f"file://{Path(folder).expanduser().resolve()}" for folder in folders), *paths]
    return f"hydra.searchpath=[{','.join(map(repr, entries))}]"


def _replace_config_dirs(arguments: Sequence[str]) -> list[str]:
    """Replace all --config-dir by one override, so that everything composed from the arguments finds the same choices.

    With --config-name, the folder of that file is named to Hydra as well, which looks for it before it reads any override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    others: list[str] = []
    folders: list[str] = []
    paths: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name in CONFIG_DIR_OPTIONS:
            folders.append(value if equals else next(remaining, ""))
        elif name == "hydra.searchpath":
            entries: Any = OverridesParser.create().parse_override(argument).value()
            if not isinstance(entries, list):
                raise UserError(
                    f"{argument}: write a list of folders or packages, e.g. hydra.searchpath=[pkg://my_package.conf]."
                )
            paths += map(str, entries)
        else:
            others.append(argument)
    if folders or paths:
        others.append(search_path_override(folders, paths))
    name = _config_name(arguments)
    primary = [
        folder for folder in folders if (Path(folder).expanduser() / f"{name.removesuffix('.yaml')}.yaml").exists()
    ]
    return [*others, f"--config-dir={Path(primary[0]).expanduser().resolve()}"] if name and primary else others


def _config_name(arguments: Sequence[str]) -> str:
    """Return the value of --config-name, '' without it."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        if option in ("--config-name", "-cn"):
            return value if equals else following
    return ""


def combinations(arguments: Sequence[str], loader: Any = None) -> list[tuple[str, ...]]:
    """Return every combination of the values that overrides list; the last override varies fastest.

    Args:
        arguments: overrides, e.g. ['env=a,b', 'seed=0-1'], which has four combinations.
        loader: Hydra's configuration loader, for values such as mixer=glob(*).
    """
    axes = _axes(arguments, loader)
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items())))


def _axes(arguments: Sequence[str], loader: Any) -> dict[str, list[str]]:
    """Return the values that overrides list, by key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    expanded = [expand_ranges(argument, arguments) for argument in arguments]
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create(loader).parse_overrides(expanded):
        key = override.get_key_element()
        axes.pop(key, None)  # the last override of a key counts, and decides its position
        if override.is_sweep_override():
            axes[key] = list(override.sweep_string_iterator())
        else:
            axes[key] = [override.get_value_element_as_str()]
    return axes


def check_single_run(hydra: Any) -> None:
    """Raise UserError if a command without -m asks for something that only a sweep has.

    Args:
        hydra: Hydra's own part of the configuration.
    """
    if hydra.mode.name != "RUN":
        return
    if hydra.sweeper.get("params") or hydra.sweeper.get("cases"):
        raise UserError("experiment=... is a sweep: add -m, as in python -m qllm_exp -m experiment=smoke.")
    launcher = hydra.runtime.choices.get("hydra/launcher")
    if launcher != "local":
        raise UserError(f"hydra/launcher={launcher} is for sweeps: add -m (a sweep may have a single run).")


def grids(
    arguments: Sequence[str], params: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], loader: Any = None
) -> list[list[str]]:
    """Combine the command line with the axes of an experiment preset.

    The command line takes precedence over the experiment. For a key that defines a case, it can only select among the values of
    the case (see `_is_narrowed`). A case with none of the selected values is left out: env=lbf on the command line
    leaves out the cases of all other environments.

    Args:
        arguments: overrides of the command line.
        params: axes of the experiment, key to value or list of values.
        cases: sets of axes that belong together; the experiment consists of all cases, each with all `params`.
        loader: Hydra's configuration loader, as for `combinations`.

    Returns:
        One list of overrides per case, for `combinations` to multiply out; a single list if there are no cases.

    Raises:
        UserError: the command line leaves out every case.
    """
    requested = _axes(arguments, loader)
    if not cases:
        return [[*arguments, *_overrides_of(params, requested)]]
    case_values = _listed_case_values(cases)
    lists = []
    for case in cases:
        narrowed = {
            key: [requested_value for requested_value in requested[key] if requested_value in _as_strings(value)]
            for key, value in case.items()
            if key in requested and _is_narrowed(key, value, requested[key], case_values)
        }
        if all(narrowed.values()):
            command = [_narrow(argument, narrowed) for argument in arguments]
            lists.append([*command, *_overrides_of(case, requested), *_overrides_of(params, requested)])
    if not lists:
        raise UserError(f"No case of the experiment matches {' '.join(arguments)}.")
    return lists


def _listed_case_values(cases: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Return each (key, value) that some case lists among several values."""
    return {
        (key, value)
        for case in cases
        for key, values in case.items()
        if _is_list(values)
        for value in _as_strings(values)
    }


def _is_narrowed(key: str, value: Any, requested: Sequence[str], case_values: set[tuple[str, str]]) -> bool:
    """Whether the command line selects among the values of a case for this key, instead of replacing them.

    That holds for a key with a single text value, for a group (env, algorithm, mixer), and for a list if every requested value
    is listed by some case. Numbers and ranges of them, such as 0-2, are replaced.

    Args:
        key: key of the case.
        value: value or list of values that the case gives it.
        requested: values that the command line gives it.
        case_values: result of `_listed_case_values`.
    """
    is_group = "." not in key
    is_known = _is_list(value) and all((key, requested_value) in case_values for requested_value in requested)
    is_text = isinstance(value, str) and _RANGE_LIST.fullmatch(value) is None
    return is_text or is_group or is_known


def _narrow(argument: str, narrowed: Mapping[str, Sequence[str]]) -> str:
    """Return the override with the values that a case has in common with the command line."""
    key = argument.partition("=")[0]
    return f"{key}={','.join(narrowed[key])}" if key in narrowed else argument


def _overrides_of(axes: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return axes as overrides, without the keys that the command line sets."""
    return [f"{key}={','.join(_as_strings(value))}" for key, value in axes.items() if key not in requested]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _as_strings(value: Any) -> list[str]:
    return ["null" if item is None else str(item) for item in (value if _is_list(value) else [value])]
