"""`--help`: what can be chosen and set, from the YAML files themselves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.config.overrides import CONFIG_DIR_OPTIONS
from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError, nearest

_GROUPS = {
    "env": "the environment",
    "algorithm": "how the team learns",
    "mixer": "how the agents' values become the team's",
    "llm": "which language model writes the function of mixer=tfcaf",
    "train": "budget and the settings that methods share",
    "experiment": "a named sweep, with -m",
    "tracking": "where metrics go besides the run's own files",
    "hydra/launcher": "where the runs of a sweep run, with -m",
    "hydra/sweeper": "which combinations a sweep has, with -m",
}
_USAGE = """\
qllm-exp [KEY=VALUE ...]                     one run
qllm-exp -m KEY=VALUE,VALUE ...              a sweep: every combination; ranges too: seed=0-4
qllm-exp -m ... --dry-run                    what that would run, and how long
qllm-exp -m ... hydra/launcher=slurm         as jobs of a cluster
qllm-exp status|watch|logs|cancel|retry ...  what sweeps are doing, and what to do about it
qllm-exp results ...                         tables, figures and reports of runs
qllm-exp tfcaf ...                           credit-assignment functions: generate, show, explain, verify, import
qllm-exp check env=... mixer=...             whether your own environment, mixer or algorithm keeps its contract

qllm-exp --help env=lbf mixer=qmix           every value of these choices, with its comment
qllm-exp --help config                       every value that all runs have: seed, device, dir, sweep, tfcaf
qllm-exp --version

`python -m qllm_exp` is the same command. A dot reaches any value: train.learning_rate=1e-3.
"""


def overview(folders: Sequence[Path] = ()) -> str:
    """Return the usage, and a line for every choice of every group.

    Args:
        folders: the user's own folders (--config-dir), whose choices are listed too.
    """
    lines = [_USAGE]
    for group, title in _GROUPS.items():
        paths = _choices(group, folders)
        width = max((len(path.stem) for path in paths), default=0)
        lines.append(f"{group}=...  {title}")
        for path in paths:
            indent = f"    {path.stem:{width}}  "
            text = textwrap.shorten(_title(path), 110 - len(indent), placeholder=" ...")
            lines.append(f"{indent}{text}".rstrip())
        lines.append("")
    return "\n".join(lines)


def values(arguments: Sequence[str], folders: Sequence[Path] = ()) -> str:
    """Return the YAML files of some choices, as they are: each value with its comment and what is allowed.

    Args:
        arguments: 'env=lbf', 'train=fair,paper', 'mixer' (all of them), or 'config' (the values that all runs have).
        folders: the user's own folders (--config-dir).

    Raises:
        UserError: there is no such group or choice.
    """
    texts = []
    for argument in arguments:
        group, _, names = argument.partition("=")
        if group == "config":
            texts.append(_shown(CONF / "config.yaml", "config"))
            continue
        if group not in _GROUPS:
            raise UserError(
                f"--help {argument}: there is no group {group!r}.{nearest(group, _GROUPS)} Groups: {', '.join(_GROUPS)}."
            )
        known = {path.stem: path for path in _choices(group, folders)}
        for name in names.split(",") if names else known:
            if name not in known:
                raise UserError(
                    f"--help {argument}: {group}={name} is unknown.{nearest(name, known)} Allowed: {', '.join(known)}."
                )
            texts.append(_shown(known[name], f"{group}={name}"))
    return "\n".join(texts)


def parse(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the arguments beside --help, which are groups and choices, and the folders of --config-dir.

    Args:
        arguments: the command line, e.g. ['--help', 'env=lbf', '--config-dir', 'my_conf'].
    """
    names: list[str] = []
    folders: list[Path] = []
    rest = iter(arguments)
    for argument in rest:
        option, _, value = argument.partition("=")
        if option in CONFIG_DIR_OPTIONS:
            folders.append(Path(value or next(rest, "")).expanduser())
        elif not argument.startswith("-"):
            names.append(argument)
    return names, folders


def _choices(group: str, folders: Sequence[Path]) -> list[Path]:
    return [path for folder in (CONF, *folders) for path in sorted((folder / group).glob("*.yaml"))]


def _title(path: Path) -> str:
    """Return the comment at the head of a YAML file, as one line."""
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):  # for Hydra
            continue
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# ").strip())
    return " ".join(head)


def _shown(path: Path, name: str) -> str:
    return f"--- {name} ---\n{path.read_text(encoding='utf-8').strip()}\n"
