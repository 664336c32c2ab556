"""The choices of each group: those of the package, one module and one YAML file each, and modules of the user's own.

group        module                       attributes
env          qllm_exp.envs.NAME           Config, make, check, tasks
algorithm    qllm_exp.algorithms.NAME     Config, make, ACCEPTS
mixer        qllm_exp.mixers.NAME         Config, make
llm          qllm_exp.llm.BACKEND         Config, make; BACKEND is `llm.backend` of conf/llm/NAME.yaml
train, tracking                           none; schema.py has their types
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import yaml

from qllm_exp.errors import UserError, error_line, nearest
from qllm_exp.utils.files import read_regular_file

GROUPS = ("env", "algorithm", "mixer", "llm", "train", "tracking")
_PACKAGE = Path(__file__).parents[1]
# In a wheel the YAML files are inside the package; in a checkout they are beside it.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.exists())
SUBPACKAGES = {
    "env": "envs",
    "algorithm": "algorithms",
    "mixer": "mixers",
    "llm": "llm",
}  # of the groups whose choices are modules


@cache
def choices(group: str) -> tuple[str, ...]:
    """Return the sorted names of the choices that ship with the package: the YAML files in the folder of the group.

    Args:
        group: one of GROUPS.
    """
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def owners(groups: Iterable[str], option: str) -> list[tuple[str, str]]:
    """Return the choices that have an option of this name: group and choice, e.g. ('mixer', 'qmix') for 'embed'."""
    files = [(group, choice) for group in groups for choice in choices(group)]
    return [
        (group, choice)
        for group, choice in files
        if option in yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    ]


def find(group: str, name: str) -> ModuleType:
    """Import the module of a choice.

    Args:
        group: env, algorithm, mixer or llm.
        name: a choice of the package, e.g. 'qmix' for qllm_exp.mixers.qmix, or a module on PYTHONPATH. For llm: the backend.

    Raises:
        UserError: there is no such module, or importing it fails.
    """
    shipped = choices(group)
    if name in shipped or (group == "llm" and (_PACKAGE / "llm" / f"{name}.py").exists()):
        return importlib.import_module(f"qllm_exp.{SUBPACKAGES[group]}.{name}")
    source = find_source(name)
    if source is None:
        own_module = "or the name of a module of your own on PYTHONPATH"
        allowed = ", ".join(shipped)
        raise UserError(f"{group}={name!r} is unknown.{nearest(name, shipped)} Allowed: {allowed}, {own_module}.")
    if not mentions(source, "Config"):
        raise UserError(f"{group}={name!r}: the module needs a dataclass named Config that describes its options.")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"{group}={name!r} cannot be imported: {error_line(error)}") from error


def find_source(name: str) -> Path | None:
    """Return the file of a module without importing anything; None if there is no such module.

    The name may come from a file that anybody wrote, such as the configuration of a run, and importing any module of Python
    would do whatever that module does.

    Args:
        name: dotted name of the module.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        return Path(loaded)
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in parts:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def mentions(source: Path, name: str) -> bool:
    """Whether the source of a module contains a name, or imports all names of another module."""
    try:
        text = read_regular_file(source).decode(errors="replace")
    except OSError:
        return False
    return re.search(rf"\b{name}\b|\bimport \*", text) is not None
