"""The compiled recurrent network and TD(lambda) for the CPU, from gru_kernel.cpp; utils/compiled.py builds it at first use.

Without it the network runs in plain torch, which gives the same results up to rounding but is slower. `python -m
qllm_exp.networks.gru_kernel` builds the kernel and prints whether the kernel or torch is in use.

Shapes: T steps, R rows, I inputs, H hidden units, A actions; M steps of all rows together. Sequences are packed (packing.py):
first the rows that have the first step, then those that have the second, and so on, the longest sequences first.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from qllm_exp.utils.compiled import CompiledSource

SOURCE = CompiledSource(Path(__file__).with_suffix(".cpp"), ["-ffp-contract=fast"], "network")
available, status, version = SOURCE.available, SOURCE.status, SOURCE.version

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
    """[T, I, H, A, 1 with a normalisation or 0] of a call, as a C array.

    Raises:
        ValueError: The shape of a tensor is not the one that the compiled code reads.
    """
    n_actions, hidden = params[6].shape
    n_inputs = inputs.shape[-1]
    weight, bias = (3 * hidden, hidden), (3 * hidden,)
    expected = [(hidden, n_inputs), (hidden,), weight, weight, bias, bias, (n_actions, hidden), (n_actions,)]
    normalised = len(params) > len(expected)
    expected += [(hidden,), (hidden,)] if normalised else []
    shapes = [tuple(p.shape) for p in params]
    if shapes != expected:
        raise ValueError(f"inputs {tuple(inputs.shape)} do not fit parameters of shapes {shapes}: expected {expected}")
    return (ctypes.c_int64 * 5)(len(sizes), n_inputs, hidden, n_actions, normalised)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _call(name: str, *arguments: Any) -> None:
    if SOURCE.function(name)(*arguments) != 0:
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
    saved_size = SOURCE.function("qllm_recurrent_saved_size", ctypes.c_int64)
    saved = _workspace(saved_size(dims, _pointer(sizes))) if keep else None
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
        params: Weight and bias of fc_in; weight_ih, weight_hh, bias_ih, bias_hh of the cell; weight and bias of fc_out; and of the
            layer normalisation before the ReLU if there is one.

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
    """TD(lambda) returns; None if the kernel is not available or does not take these tensors: float32 and bool on the CPU, of one
    shape, without gradients.

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
    floats, flags = (reward, next_value), (terminated, mask)
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in floats) or not available():
        return None
    if any(x.dtype != torch.bool or x.device.type != "cpu" for x in flags):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in floats):
        return None
    if len({x.shape for x in (*floats, *flags)}) > 1:
        return None
    arrays = [x.contiguous() for x in (*floats, *flags)]
    target = torch.empty_like(arrays[0])
    sizes = [ctypes.c_int64(size) for size in (len(target), target[0].numel())]
    pointers = [_pointer(tensor) for tensor in (*arrays, target)]
    SOURCE.function("qllm_td_lambda", None)(*sizes, ctypes.c_float(gamma), ctypes.c_float(lam), *pointers)
    return target


if __name__ == "__main__":
    print(status())
