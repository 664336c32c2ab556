"""The compiled recurrent network for CPU: built from gru_kernel.cpp at first use, kept on disk, called through ctypes.

`QLLM_EXP_NATIVE=0` switches it off and `CXX` chooses the compiler. Where nothing can be built, everything still runs
in plain torch, only slower. `python -m qllm_exp.networks.gru_kernel` builds it and says which of the two is in use.

Shapes: T steps, R rows, I inputs, H hidden units, A actions.
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
_TUNING = ("-march=native", "-mcpu=native", "")  # how compilers for different processors say "for this machine"
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_SECONDS = 120
_log = logging.getLogger(__name__)


class _UnavailableError(Exception):
    """Why there is no compiled network."""


# ---- building and loading


def _run(command: Sequence[str]) -> str:
    """Standard output of a command; _UnavailableError with its last words when it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.splitlines() or ["failed without a message"]
        telling = [line for line in said if "error" in line.lower()] or said[-1:]
        raise _UnavailableError(f"{command[0]}: {telling[0].strip()}")
    return done.stdout


def _compilers() -> list[list[str]]:
    """Commands to try, best first: $CXX alone where it is set."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return [chosen]
    if found := [[name] for name in _COMPILERS if shutil.which(name)]:
        return found
    raise _UnavailableError(f"no C++ compiler: none of {', '.join(_COMPILERS)} is on PATH; install g++ or set CXX")


def _processor() -> str:
    """What decides the code made by -march=native: two machines may share one home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    telling = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))]
    return "\n".join([platform.machine(), platform.processor(), *telling])


def _compile(to: Path) -> None:
    """Build gru_kernel.cpp with the first compiler and tuning that work."""
    reasons = []
    for compiler in _compilers():
        for tuning in _TUNING:
            flags = [*_FLAGS, tuning] if tuning else [*_FLAGS]
            try:
                _run([*compiler, *flags, str(_SOURCE), "-o", str(to)])
                return
            except _UnavailableError as error:
                reasons.append(str(error))
    raise _UnavailableError(reasons[0])


def _file_name() -> str:
    """A name that changes with everything that decides what is in the file."""
    compiler = _compilers()[0]
    parts = [_SOURCE.read_text(), *compiler, _run([*compiler, "--version"]), *_FLAGS, *_TUNING, _processor()]
    return f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.so"


def _from_cache() -> tuple[ctypes.CDLL, str]:
    """Load the file from the user's cache, building it first where it is not there yet; OSError if that is no place."""
    try:
        cache = cache_folder()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    built = cache / _file_name()
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
            _compile(Path(folder) / built.name)
            os.replace(Path(folder) / built.name, built)  # others that build at the same time see all of it or nothing
    return ctypes.CDLL(str(built)), str(built)


def _for_this_process() -> tuple[ctypes.CDLL, str]:
    """Build and load without leaving a file behind."""
    with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder:
        built = Path(folder) / "native.so"
        _compile(built)
        return ctypes.CDLL(str(built)), "for this process only: the cache cannot be written"


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library or None, and where it lies or why there is none."""
    if os.environ.get("QLLM_EXP_NATIVE") == "0":
        return None, "QLLM_EXP_NATIVE=0"
    try:
        try:
            library, place = _from_cache()
        except OSError:
            library, place = _for_this_process()
    except (_UnavailableError, OSError) as error:
        _log.info("The recurrent network runs in plain torch, more slowly: %s", error)
        return None, str(error)
    library.qllm_recurrent_saved_size.restype = ctypes.c_int64
    return library, place


def available() -> bool:
    """Whether the compiled network can be used; the first call may build it, which takes a few seconds."""
    return _library()[0] is not None


def status() -> str:
    """'native (path)' or 'torch (reason)'."""
    library, detail = _library()
    return f"{'torch' if library is None else 'native'} ({detail})"


# ---- calling

# Memory of finished updates. What a forward pass saves is some megabytes, which the system would hand out page by page,
# and take back, in every update.
_SPARE_BYTES = 64 * 2**20
_spare: deque[np.ndarray[Any, np.dtype[np.float32]]] = deque(maxlen=3)


def _workspace(floats: int) -> Tensor:
    """Uninitialised float32 [floats], on a cache line, whose memory is used again once no tensor refers to it."""
    try:
        memory = _spare.pop()
    except IndexError:
        memory = np.empty(0, np.float32)
    if memory.size < floats + 16:
        memory = np.empty(floats + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    lent = memory[first : first + floats]
    if memory.nbytes <= _SPARE_BYTES:
        weakref.finalize(lent, _spare.append, memory).atexit = False
    return torch.from_numpy(lent)


def _sizes(inputs: Tensor, params: Sequence[Tensor]) -> list[int]:
    """[T, R, I, H, A] of a call; ValueError where a tensor does not fit what the compiled code will read."""
    n_actions, hidden = params[6].shape
    steps, rows, n_inputs = inputs.shape
    weight, bias = (3 * hidden, hidden), (3 * hidden,)
    expected = [(hidden, n_inputs), (hidden,), weight, weight, bias, bias, (n_actions, hidden), (n_actions,)]
    given = [tuple(p.shape) for p in params]
    if given != expected:
        raise ValueError(f"inputs {tuple(inputs.shape)} do not fit parameters {given}: expected {expected}")
    return [steps, rows, n_inputs, hidden, n_actions]


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _call(name: str, *arguments: Any) -> None:
    if getattr(_library()[0], name)(*arguments) != 0:
        raise MemoryError(f"{name}: no memory for its working arrays")


def _forward(
    inputs: Tensor, params: Sequence[Tensor], hidden: Tensor | None, last: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """q [T, R, A] and, if `keep`, what the backward pass needs. Tensors are contiguous float32 on CPU."""
    sizes = _sizes(inputs, params)
    dims = (ctypes.c_int64 * 5)(*sizes)
    library = _library()[0]
    assert library is not None
    saved = _workspace(library.qllm_recurrent_saved_size(dims)) if keep else None
    q = torch.empty(sizes[0], sizes[1], sizes[4])
    arrays = [_pointer(tensor) for tensor in (inputs, hidden, last, q, saved)]
    _call("qllm_recurrent_forward", dims, _pointers(params), *arrays)
    return q, saved


class _Unroll(torch.autograd.Function):
    """`unroll` with gradients for the parameters, and none for the inputs."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, *params: Tensor) -> Tensor:
        q, saved = _forward(inputs, params, None, None, keep=True)
        assert saved is not None
        ctx.save_for_backward(inputs, saved, *params)
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor | None, ...]:
        inputs, saved, *params = ctx.saved_tensors
        grad_q = grad_q.contiguous()
        grads = [torch.empty_like(p) for p in params]
        dims = (ctypes.c_int64 * 5)(*_sizes(inputs, params))
        arrays = [_pointer(tensor) for tensor in (inputs, saved, grad_q)]
        _call("qllm_recurrent_backward", dims, _pointers(params), *arrays, _pointers(grads))
        return None, *[grad if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad[1:], strict=True)]


def _ready(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as the compiled code reads them; TypeError for anything but float32 on CPU."""
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"the compiled network takes float32 on cpu, not {tensor.dtype} on {tensor.device}")
    return [tensor.contiguous() for tensor in tensors]


def unroll(inputs: Tensor, params: Sequence[Tensor]) -> Tensor:
    """q [T, R, A] of a sequence inputs [T, R, I] from a zero hidden state, differentiable in the parameters.

    Args:
        params: weight and bias of fc_in; weight_ih, weight_hh, bias_ih, bias_hh of the cell; weight and bias of fc_out.

    Raises:
        TypeError, ValueError: tensors of another type, device or shape.
    """
    inputs, *params = _ready([inputs, *params])
    if torch.is_grad_enabled() and any(p.requires_grad for p in params):
        q: Tensor = _Unroll.apply(inputs, *params)  # type: ignore[no-untyped-call]
        return q
    return _forward(inputs, params, None, None, keep=False)[0]


def step(inputs: Tensor, hidden: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """q [R, A] and next hidden [R, H] from inputs [R, I] and hidden [R, H], without gradients. Raises as `unroll`."""
    inputs, hidden, *params = _ready([inputs, hidden, *params])
    if hidden.shape != (len(inputs), params[6].shape[1]):
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit: expected {(len(inputs), params[6].shape[1])}")
    last = torch.empty_like(hidden)
    return _forward(inputs[None], params, hidden, last, keep=False)[0][0], last


if __name__ == "__main__":
    print(status())
