"""Shorter start-up of a process: what is not imported, composed or parsed again, and a garbage collector that rests meanwhile."""

import contextlib
import copy
import functools
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

_MAY_SET_MODE = ("hydra.mode", "hydra.searchpath", "--config-", "-cn", "-cp")  # overrides and options of Hydra
_USUAL, _RARE = gc.get_threshold(), (1_000_000, 10, 10)


def rest_collector() -> None:
    """Let the garbage collector look rarely, until `wake_collector`.

    To import torch makes some hundred thousand objects, nearly all of which stay. Meanwhile they are by default looked through
    dozens of times, which takes a third of the time.
    """
    gc.set_threshold(*_RARE)


def wake_collector() -> None:
    """End `rest_collector`. The objects that there are now are left out of later searches, also of that when the process ends."""
    if gc.get_threshold() == _RARE:
        gc.freeze()
        gc.set_threshold(*_USUAL)


@contextlib.contextmanager
def composing_without_mode(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra take from -m alone whether a command is a sweep, unless the arguments may say otherwise.

    Hydra composes the whole configuration once more, before everything else, only to read `hydra.mode`, which this package
    leaves empty. That is a quarter of what a short command takes.

    Args:
        arguments: the command line in the form that Hydra expects, where folders of YAML files, which may set the mode, are a
            `hydra.searchpath`.
    """
    from hydra._internal.hydra import Hydra

    get_mode = Hydra.get_mode
    if not any(argument.lstrip("+").startswith(_MAY_SET_MODE) for argument in arguments):
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


@functools.cache
def parse_files_once() -> None:
    """Let Hydra parse each YAML file once in this process, as long as the file stays as it is.

    Hydra parses the same two dozen files again for each configuration that it composes, which takes a quarter of the time that a
    sweep over choices needs to be planned.
    """
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers the sources
    for scheme in ("file", "pkg"):
        source: Any = SourcesRegistry.instance().resolve(scheme)
        source.load_config = _remembering(source.load_config)


def _remembering(load_config: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Return a method of a source of configurations that returns copies of what it has loaded before."""
    results: dict[Any, Any] = {}

    def load(self: Any, config_path: str) -> Any:
        version = None  # of a file within a package, which stays as it is
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(self.path, self._normalize_file_name(config_path)))
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
        key = (self.path, self.provider, config_path, version)
        if key not in results:
            results[key] = load_config(self, config_path)
        return copy.deepcopy(results[key])

    return load


@functools.cache
def keep_compiler_out() -> None:
    """Let torch's operations that are written in Python run without an import of torch's compiler, which takes a second.

    Tensors on the meta device need these operations. Torch wraps them in functions that, when first called, ask the compiler for a
    version of the operation that it leaves alone. Outside of the compiler that is the operation itself, which this stores where
    the wrapper looks first. If a later torch stores it elsewhere, the import takes place again.
    """
    import torch

    library: Any = torch  # none of these names is part of its interface
    wrapper = library._disable_dynamo(lambda: None).__code__
    namespaces = (library._refs, library._refs.special, library._refs.nn.functional, library._meta_registrations)
    tables = (*library._decomp.global_decomposition_table.values(), *map(vars, namespaces))
    waiting = [function for table in tables for function in table.values()]
    visited: set[FunctionType] = set()
    while waiting:  # through the wrappers, to what they wrap
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in visited:
            continue
        visited.add(function)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if function.__code__ is wrapper and "fn" in cells:
            cells["fn"].cell_contents.__dict__["__dynamo_disable"] = cells["fn"].cell_contents
        waiting += [cell.cell_contents for cell in cells.values() if _is_filled(cell)]


def _is_filled(cell: Any) -> bool:
    """Whether a variable of an enclosing function has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
