"""C++ files of this package as libraries for the CPU: built at first use, cached on disk, loaded through ctypes.

`QLLM_EXP_NATIVE=0` disables all of them, `CXX` selects the compiler. A library in the cache needs no compiler.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.utils.files import cache_folder

_FLAGS = ("-std=gnu++17", "-O3")
_LIBRARY_FLAGS = ("-fno-math-errno", "-shared", "-fPIC")
_TUNING = ("-march=native", "-mcpu=native", "")  # spellings of "tune for this machine"; "" if neither is accepted
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_TIMEOUT_S = 120
_log = logging.getLogger(__name__)


class _UnavailableError(Exception):
    """The library cannot be built; the message is the reason."""


class _Library(ctypes.CDLL):
    """A loaded library.

    Args:
        path: Its file.

    Attributes:
        version: The first digits of the hash of the file. Compilers and processors change them, and the rounding of results.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:10]


class CompiledSource:
    """A C++ file and its library, which is built when it is first asked for. Where that fails, torch takes its place.

    Args:
        source: The C++ file. It includes nothing but the standard library.
        flags: Compiler flags of its own, such as how it rounds.
        name: What it computes, for the log: 'network'.
    """

    def __init__(self, source: Path, flags: Sequence[str], name: str) -> None:
        self._source, self._name = source, name
        self._flags = (*_FLAGS, *flags, *_LIBRARY_FLAGS)
        self._load = functools.cache(self._try_load)

    def available(self) -> bool:
        """Whether the library can be used. The first call may build it, which takes a few seconds."""
        return self._load()[0] is not None

    def status(self) -> str:
        """The implementation in use: 'native (PATH)' or 'torch (REASON)'."""
        library, detail = self._load()
        implementation = "torch" if library is None else "native"
        return f"{implementation} ({detail})"

    def version(self) -> str:
        """The implementation in use, wherever its file is: 'native 1a2b3c4d5e', or 'torch'. Equal ones give the same bits."""
        library = self._load()[0]
        return "torch" if library is None else f"native {library.version}"

    def function(self, name: str, result: Any = ctypes.c_int) -> Any:
        """Return a function of the library, which must be available.

        Args:
            name: Of the function, declared extern "C".
            result: The ctypes type that it returns.
        """
        library = self._load()[0]
        assert library is not None
        function = getattr(library, name)
        function.restype = result
        return function

    def _try_load(self) -> tuple[_Library | None, str]:
        """The loaded library and its path, or None and the reason."""
        if os.environ.get("QLLM_EXP_NATIVE") == "0":
            return None, "QLLM_EXP_NATIVE=0"
        try:
            try:
                return self._load_cached()
            except OSError:
                return self._load_temporary()
        except (_UnavailableError, OSError) as error:
            _log.info("No compiled %s; the slower torch version is used: %s", self._name, error)
            return None, str(error)

    def _load_cached(self) -> tuple[_Library, str]:
        """Load the library from the user's cache, and build it first if it is missing.

        Returns:
            The library and its path.

        Raises:
            OSError: The cache is not usable.
            _UnavailableError: The library cannot be built.
        """
        try:
            cache = cache_folder()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        path = cache / self._file_name()
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
                self._compile(Path(folder) / path.name)
                os.replace(Path(folder) / path.name, path)  # atomic: other processes never see a partial file
        return _Library(path), str(path)

    def _load_temporary(self) -> tuple[_Library, str]:
        """Build and load the library without leaving a file behind."""
        with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder:
            path = Path(folder) / "native.so"
            self._compile(path)
            return _Library(path), "for this process only: the cache cannot be written"

    def _file_name(self) -> str:
        """Name of the library, with a hash of source, flags and processor.

        The compiler is not part of it: a run that is resumed where the compiler is missing, or is a newer one, finds the
        library that it began with.
        """
        parts = [self._source.read_text(), *self._flags, *_TUNING, _processor()]
        return f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.so"

    def _compile(self, output: Path) -> None:
        """Build the library with the first combination of compiler and tuning flag that works.

        Raises:
            _UnavailableError: No combination works; with the reason of the first.
        """
        reasons = []
        for compiler in _compilers():
            for tuning in _TUNING:
                flags = [*self._flags, tuning] if tuning else [*self._flags]
                try:
                    _run([*compiler, *flags, str(self._source), "-o", str(output)])
                    return
                except _UnavailableError as error:
                    reasons.append(str(error))
        raise _UnavailableError(reasons[0])


def _run(command: Sequence[str]) -> str:
    """Run a command and return its standard output.

    Raises:
        _UnavailableError: The command cannot be started, takes too long, or fails; with its first error line.
    """
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]}: {error}") from error
    if process.returncode != 0:
        lines = process.stderr.splitlines() or ["failed without a message"]
        error_lines = [line for line in lines if "error:" in line.lower()] or lines[-1:]
        raise _UnavailableError(f"{command[0]}: {error_lines[0].strip()}")
    return process.stdout


def _compilers() -> list[list[str]]:
    """Compiler commands to try, best first; only $CXX if it is set.

    Raises:
        _UnavailableError: No compiler is installed, or $CXX is not a command.
    """
    try:
        command = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise _UnavailableError(f"CXX={os.environ['CXX']!r} is not a command: {error}") from None
    if command:
        return [command]
    if installed := [[name] for name in _COMPILERS if shutil.which(name)]:
        return installed
    raise _UnavailableError(f"no C++ compiler: none of {', '.join(_COMPILERS)} is on PATH; install g++ or set CXX")


def _processor() -> str:
    """Description of the processor, which determines the code of -march=native: machines may share one home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))]
    return "\n".join([platform.machine(), platform.processor(), *features])
