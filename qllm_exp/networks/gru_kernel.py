"""The compiled recurrent network and TD(lambda) for the CPU: built from gru_kernel.cpp at first use, cached on disk, called
through ctypes.

`QLLM_EXP_NATIVE=0` disables it, `CXX` selects the compiler that builds it. A kernel in the cache needs no compiler. With neither,
the network runs in plain torch, which gives the same results up to rounding but is slower. `python -m
qllm_exp.networks.gru_kernel` builds the kernel and prints whether the kernel or torch is in use.

Shapes: T steps, R rows, I inputs, H hidden units, A actions; M steps of all rows together. Sequences are packed (packing.py):
first the rows that have the first step, then those that have the second, and so on, the longest sequences first.
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
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from qllm_exp.utils.files import cache_folder

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=gnu++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
_TUNING = ("-march=native", "-mcpu=native", "")  # spellings of "tune for this machine"; "" if neither is accepted
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_TIMEOUT_S = 120
_log = logging.getLogger(__name__)


class _UnavailableError(Exception):
    """The kernel cannot be built; the message is the reason."""


class _Library(ctypes.CDLL):
    """A loaded kernel.

    Args:
        path: Its file.

    Attributes:
        version: The first digits of the hash of the file. Compilers and processors change them, and the rounding of results.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        self.qllm_recurrent_saved_size.restype = ctypes.c_int64


# ---- building and loading


def _run(command: Sequence[str]) -> str:
    """Run a command and return its standard output.

    Raises:
        _UnavailableError: The command cannot be started, takes too long, or fails; with its first error line.
    """
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]}: {error}") from error
    if process.returncode != 0:
        lines = process.stderr.splitlines() or ["failed without a message"]
        error_lines = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise _UnavailableError(f"{command[0]}: {error_lines[0].strip()}")
    return process.stdout


def _compilers() -> list[list[str]]:
    """Compiler commands to try, best first; only $CXX if it is set.

    Raises:
        _UnavailableError: No compiler is installed.
    """
    if command := shlex.split(os.environ.get("CXX", "")):
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


def _compile(output: Path) -> None:
    """Build gru_kernel.cpp with the first combination of compiler and tuning flag that works.

    Raises:
        _UnavailableError: No combination works; with the reason of the first.
    """
    reasons = []
    for compiler in _compilers():
        for tuning in _TUNING:
            flags = [*_FLAGS, tuning] if tuning else [*_FLAGS]
            try:
                _run([*compiler, *flags, str(_SOURCE), "-o", str(output)])
                return
            except _UnavailableError as error:
                reasons.append(str(error))
    raise _UnavailableError(reasons[0])


def _file_name() -> str:
    """Name of the library, with a hash of source, flags and processor.

    The compiler is not part of it: a run that is resumed where the compiler is missing, or is a newer one, finds the library
    that it began with.
    """
    parts = [_SOURCE.read_text(), *_FLAGS, *_TUNING, _processor()]
    return f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.so"


def _load_cached() -> tuple[_Library, str]:
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
    path = cache / _file_name()
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
            _compile(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)  # atomic: other processes never see a partial file
    return _Library(path), str(path)


def _load_temporary() -> tuple[_Library, str]:
    """Build and load the library without leaving a file behind."""
    with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder:
        path = Path(folder) / "native.so"
        _compile(path)
        return _Library(path), "for this process only: the cache cannot be written"


@functools.cache
def _library() -> tuple[_Library | None, str]:
    """The loaded library and its path, or None and the reason."""
    if os.environ.get("QLLM_EXP_NATIVE") == "0":
        return None, "QLLM_EXP_NATIVE=0"
    try:
        try:
            return _load_cached()
        except OSError:
            return _load_temporary()
    except (_UnavailableError, OSError) as error:
        _log.info("No compiled network; the slower torch version is used: %s", error)
        return None, str(error)


def available() -> bool:
    """Whether the compiled network can be used. The first call may build it, which takes a few seconds."""
    return _library()[0] is not None


def status() -> str:
    """The implementation in use: 'native (PATH)' or 'torch (REASON)'."""
    library, detail = _library()
    implementation = "torch" if library is None else "native"
    return f"{implementation} ({detail})"


def version() -> str:
    """The implementation in use, wherever its file is: 'native 1a2b3c4d5e', or 'torch'. Equal ones give the same bits."""
    library = _library()[0]
    return "torch" if library is None else f"native {library.version}"


# ---- calling

# Buffers of finished updates, kept for reuse. A forward pass saves several megabytes for the backward pass. A new allocation
# per update would cost page faults every time.
_MAX_SPARE_BYTES = 64 * 2**20
_spare: deque[np.ndarray[Any, np.dtype[np.float32]]] = deque(maxlen=3)


def _workspace(floats: int) -> Tensor:
    """Uninitialised float32 tensor [floats], aligned to a cache line. Its memory is reused once no tensor refers to it."""
    try:
        memory = _spare.pop()
    except IndexError:
        memory = np.empty(0, np.float32)
    if memory.size < floats + 16:
        memory = np.empty(floats + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    view = memory[first : first + floats]
    if memory.nbytes <= _MAX_SPARE_BYTES:
        weakref.finalize(view, _spare.append, memory).atexit = False
    return torch.from_numpy(view)


def _dims(inputs: Tensor, sizes: Tensor, params: Sequence[Tensor]) -> Any:
    """[T, I, H, A] of a call, as a C array.

    Raises:
        ValueError: The shape of a tensor is not the one that the compiled code reads.
    """
    n_actions, hidden = params[6].shape
    n_inputs = inputs.shape[-1]
    weight, bias = (3 * hidden, hidden), (3 * hidden,)
    expected = [(hidden, n_inputs), (hidden,), weight, weight, bias, bias, (n_actions, hidden), (n_actions,)]
    shapes = [tuple(p.shape) for p in params]
    if shapes != expected:
        raise ValueError(f"inputs {tuple(inputs.shape)} do not fit parameters of shapes {shapes}: expected {expected}")
    return (ctypes.c_int64 * 4)(len(sizes), n_inputs, hidden, n_actions)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _call(name: str, *arguments: Any) -> None:
    if getattr(_library()[0], name)(*arguments) != 0:
        raise MemoryError(f"{name}: cannot allocate its working arrays")


def _forward(
    inputs: Tensor,
    sizes: Tensor,
    params: Sequence[Tensor],
    hidden: Tensor | None,
    last: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run the forward pass; tensors are contiguous float32 on the CPU.

    Args:
        inputs: [M, I].
        sizes: As for `unroll`.
        params: As for `unroll`.
        hidden: Hidden state [R, H] before the first step; None for zeros.
        last: Where the last hidden state [R, H] is written; None to discard it.
        keep: Whether to save activations for the backward pass.

    Returns:
        Individual Qs [M, A], and the saved activations or None.
    """
    dims = _dims(inputs, sizes, params)
    library = _library()[0]
    assert library is not None
    saved = _workspace(library.qllm_recurrent_saved_size(dims, _pointer(sizes))) if keep else None
    q = torch.empty(len(inputs), len(params[6]))
    arrays = [_pointer(tensor) for tensor in (inputs, hidden, last, q, saved)]
    _call("qllm_recurrent_forward", dims, _pointer(sizes), _pointers(params), *arrays)
    return q, saved


class _Unroll(torch.autograd.Function):
    """`unroll` with gradients of the parameters, not of the inputs."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, sizes: Tensor, *params: Tensor) -> Tensor:
        q, saved = _forward(inputs, sizes, params, None, None, keep=True)
        assert saved is not None
        ctx.save_for_backward(inputs, sizes, saved, *params)
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, ...]:
        inputs, sizes, saved, *params = ctx.saved_tensors
        grad_q = grad_q.contiguous()
        grads = [torch.empty_like(p) for p in params]
        dims = _dims(inputs, sizes, params)
        arrays = [_pointer(tensor) for tensor in (inputs, saved, grad_q)]
        _call("qllm_recurrent_backward", dims, _pointer(sizes), _pointers(params), *arrays, _pointers(grads))
        needs_grad = ctx.needs_input_grad[2:]
        return None, None, *[grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True)]


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous versions of the tensors.

    Raises:
        TypeError: A tensor is not float32 on the CPU.
    """
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the compiled network requires float32 on cpu, not {tensor.dtype} on {tensor.device}")
    return [tensor.contiguous() for tensor in tensors]


def unroll(inputs: Tensor, sizes: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Individual Qs along packed sequences from a zero hidden state, differentiable in the parameters.

    Args:
        inputs: [M, I].
        sizes: Number of rows that have each step, [T] int64, positive and not increasing.
        params: Weight and bias of fc_in; weight_ih, weight_hh, bias_ih, bias_hh of the cell; weight and bias of fc_out.

    Returns:
        [M, A].

    Raises:
        TypeError: A tensor is not float32 on the CPU.
        ValueError: The shapes or the sizes do not fit together.
    """
    inputs, *params = _contiguous([inputs, *params])
    rows = sizes.tolist()
    if sum(rows) != len(inputs) or rows != sorted(rows, reverse=True) or rows[-1] < 1:
        raise ValueError(
            f"sizes {rows} do not fit {len(inputs)} rows of inputs: expected positive numbers that do not increase and sum to it"
        )
    if torch.is_grad_enabled() and any(p.requires_grad for p in params):
        q: Tensor = _Unroll.apply(inputs, sizes.contiguous(), *params)  # type: ignore[no-untyped-call]
        return q
    return _forward(inputs, sizes.contiguous(), params, None, None, keep=False)[0]


def step(inputs: Tensor, hidden: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One step, without gradients.

    Args:
        inputs: [R, I].
        hidden: [R, H].
        params: As for `unroll`.

    Returns:
        Individual Qs [R, A] and the next hidden state [R, H].

    Raises:
        TypeError: A tensor is not float32 on the CPU.
        ValueError: The shapes do not fit together.
    """
    inputs, hidden, *params = _contiguous([inputs, hidden, *params])
    expected = (len(inputs), params[6].shape[1])
    if hidden.shape != expected:
        raise ValueError(f"hidden state of shape {tuple(hidden.shape)} does not fit: expected {expected}")
    last = torch.empty_like(hidden)
    return _forward(inputs, torch.tensor([len(inputs)]), params, hidden, last, keep=False)[0], last


def td_lambda(
    reward: Tensor, next_value: Tensor, terminated: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor | None:
    """TD(lambda) returns; None if the kernel is not available or does not take these tensors.

    Args:
        reward: [T, ...].
        next_value: [T, ...].
        terminated: [T, ...] bool.
        mask: [T, ...] bool.
        gamma: Discount factor.
        lam: Lambda.

    Returns:
        [T, ...], as algorithms/targets.py defines them.
    """
    floats = (reward, next_value)
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in floats) or (library := _library()[0]) is None:
        return None
    arrays = [x.contiguous() for x in (*floats, terminated, mask)]
    target = torch.empty_like(arrays[0])
    sizes = [ctypes.c_int64(size) for size in (len(target), target[0].numel())]
    pointers = [_pointer(tensor) for tensor in (*arrays, target)]
    library.qllm_td_lambda(*sizes, ctypes.c_float(gamma), ctypes.c_float(lam), *pointers)
    return target


if __name__ == "__main__":
    print(status())
