"""The choices of a group: those that ship with the package, one module and one YAML file each, and modules of the user's own.

group        module                       what it has
env          qllm_exp.envs.NAME           Config, make, check, tasks
algorithm    qllm_exp.algorithms.NAME     Config, make, ACCEPTS
mixer        qllm_exp.mixers.NAME         Config, make
llm          qllm_exp.llm.BACKEND         Config, make; BACKEND is `llm.backend` of conf/llm/NAME.yaml
train, tracking                           schema.py has their types
"""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from qllm_exp.errors import UserError, nearest

GROUPS = ("env", "algorithm", "mixer", "llm", "train", "tracking")
_PACKAGE = Path(__file__).parents[1]
# In a wheel the YAML files are inside the package; in a checkout they are beside it.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.exists())
_ROOMS = {"env": "envs", "algorithm": "algorithms", "mixer": "mixers", "llm": "llm"}


@cache
def choices(group: str) -> tuple[str, ...]:
    """Names that ship with the package, sorted: the YAML files of the group's folder."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def find(group: str, name: str) -> ModuleType:
    """The module of a choice: `qllm_exp.mixers.qmix` for a name that ships with the package, else the importable module `name`.

    Args:
        group: env, algorithm, mixer, or llm (by the name of its backend).

    Raises:
        UserError: there is no such module.
    """
    shipped = choices(group)
    if name in shipped or (group == "llm" and (_PACKAGE / "llm" / f"{name}.py").exists()):
        return importlib.import_module(f"qllm_exp.{_ROOMS[group]}.{name}")
    try:
        known = bool(name) and importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # a parent package that is not there
        known = False
    if not known:
        own = "or the name of a module of your own on PYTHONPATH"
        raise UserError(f"{group}={name!r} is unknown.{nearest(name, shipped)} Allowed: {', '.join(shipped)}, {own}.")
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module of the user's own may do
        raise UserError(f"{group}={name!r} cannot be imported: {type(error).__name__}: {error}") from error
