"""The command line before and after Hydra: ranges such as seed=0-4, and errors that say what to type instead."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError

typed: list[str] = []  # the command line as it was typed, for records

_PART = r"\d+(?:-\d+)?"
_RANGES = re.compile(rf"(?P<key>[+~]{{0,2}}[\w./@-]+)=(?P<value>{_PART}(?:,{_PART})*)")


_NO_NUMBERS = ("hydra.", "sweep.name", "dir")  # here, 1-12 is a day and twelve hours, or a name


def expand_ranges(argument: str) -> str:
    """'seed=0-2,7' becomes 'seed=0,1,2,7'; anything that is not made of whole numbers and ranges stays as it is."""
    match = _RANGES.fullmatch(argument)
    if match is None or "-" not in match["value"] or match["key"].startswith(_NO_NUMBERS):
        return argument
    values: list[str] = []
    for part in match["value"].split(","):
        low, _, high = part.partition("-")
        if high and int(high) < int(low):
            raise UserError(f"{argument}: the range {part} runs backwards. Write {match['key']}={high}-{low}.")
        values += map(str, range(int(low), int(high or low) + 1))
    return f"{match['key']}={','.join(dict.fromkeys(values))}"


def arrange(arguments: Sequence[str]) -> list[str]:
    """What Hydra wants otherwise: -m in front of all overrides, --dry-run and --config-dir as two of them, ++ before options of
    others', and an option of a choice that is swept as a list of one, since Hydra looks for the others' in the default choice.

    Raises:
        UserError: the folder of --config-dir is not there.
    """
    several = [a for a in arguments if a in ("-m", "--multirun")]
    others = _own_folders([a for a in arguments if a not in ("-m", "--multirun")])
    others = [
        "sweep.dry_run=true" if a == "--dry-run" else re.sub(r"(?<==)~(?=/|$)", str(Path.home()), a) for a in others
    ]
    others = [f"++{a}" if a.startswith(("env.options.", "hydra.launcher.sbatch")) else a for a in others]
    return several[:1] + (_with_lists_of_one(others) if several else others)


def _with_lists_of_one(arguments: Sequence[str]) -> list[str]:
    """['algorithm=lica,riit', 'algorithm.evaluation=greedy'] has 'algorithm.evaluation=choice(greedy)' in the end."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "~"))]
    parsed = dict(zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True))
    swept = tuple(f"{one.key_or_group}." for one in parsed.values() if one.is_sweep_override())

    def listed(argument: str) -> str:
        one = parsed.get(argument)
        key, _, value = argument.partition("=")
        if one is None or not value or one.is_sweep_override() or not one.key_or_group.startswith(swept):
            return argument
        return f"{key}=choice({value})"

    return [listed(argument) for argument in arguments]


def search_in(folder: str | Path) -> str:
    """The override that makes the YAML files of a user's own folder choices beside those of the package.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"--config-dir {folder}: there is no such folder.")
    return f"hydra.searchpath=['file://{Path(folder).expanduser().resolve()}']"


def _own_folders(arguments: Sequence[str]) -> list[str]:
    """The arguments with `search_in` for --config-dir, so that whatever composes from them finds the same choices."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        name, given, folder = word.partition("=")
        if name in ("--config-dir", "-cd"):
            kept.append(search_in(folder if given else next(words, "")))
        else:
            kept.append(word)
    return kept


def combinations(arguments: Sequence[str], loader: Any = None) -> list[tuple[str, ...]]:
    """Every combination of the values that overrides list: ['env=a,b', 'seed=0-1'] gives four. The last one varies fastest.

    Args:
        loader: Hydra's, for values such as mixer=glob(*).
    """
    axes = _axes(arguments, loader)
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items())))


def _axes(arguments: Sequence[str], loader: Any) -> dict[str, list[str]]:
    """The values that overrides list, by their keys."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create(loader).parse_overrides([expand_ranges(a) for a in arguments]):
        key = override.get_key_element()
        axes.pop(key, None)  # what is given twice counts as given last
        several = override.is_sweep_override()
        axes[key] = list(override.sweep_string_iterator()) if several else [override.get_value_element_as_str()]
    return axes


def check_one_run(hydra: Any) -> None:
    """UserError for what makes sense with -m only, where -m is not given. `hydra`: Hydra's part of the configuration."""
    if hydra.mode.name != "RUN":
        return
    if hydra.sweeper.get("params") or hydra.sweeper.get("cases"):
        raise UserError("experiment=... is a sweep: add -m, as in python -m qllm_exp -m experiment=smoke.")
    launcher = hydra.runtime.choices.get("hydra/launcher")
    if launcher != "local":
        raise UserError(f"hydra/launcher={launcher} is for sweeps: add -m (a sweep may have one run).")


def grids(
    arguments: Sequence[str], params: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], loader: Any = None
) -> list[list[str]]:
    """The command line with an experiment's axes, one list of overrides for each case (`combinations` multiplies them out).

    What the command line says about a key counts instead of what the experiment says, but it only narrows what a case is
    about: what the case gives one value, groups (env, algorithm, mixer), and values that some case lists. A case that has nothing
    of what the command line asks for is left out: with env=lbf on the command line, that is every case of other environments.

    Args:
        params: axes of the experiment. cases: axes of it that go together, one set at a time. loader: as for `combinations`.
    """
    given = _axes(arguments, loader)

    def is_list(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    def listed(value: Any) -> list[str]:
        return list(map(str, value)) if is_list(value) else [str(value)]

    def written(axes: Mapping[str, Any]) -> list[str]:
        return [f"{key}={','.join(listed(value))}" for key, value in axes.items() if key not in given]

    axes = {(key, one) for case in cases for key, value in case.items() if is_list(value) for one in listed(value)}

    def narrows(key: str, value: Any) -> bool:
        known = is_list(value) and all((key, one) in axes for one in given[key])
        return isinstance(value, str) or "." not in key or known

    def narrowed(case: Mapping[str, Any]) -> dict[str, list[str]]:
        return {
            key: [one for one in given[key] if one in listed(value)]
            for key, value in case.items()
            if key in given and narrows(key, value)
        }

    chosen = [case for case in cases if all(narrowed(case).values())]
    if cases and not chosen:
        raise UserError(f"None of the experiment's cases goes with {' '.join(arguments)}.")
    if not chosen:
        return [[*arguments, *written(params)]]
    grids = []
    for case in chosen:
        own = narrowed(case)
        keys = ((one, one.partition("=")[0]) for one in arguments)
        kept = [f"{key}={','.join(own[key])}" if key in own else one for one, key in keys]
        grids.append([*kept, *written(case), *written(params)])
    return grids
