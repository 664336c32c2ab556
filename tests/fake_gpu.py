"""A GPU that is not there: code runs on device 'cuda' with PyTorch's fake tensors.

They have shapes, dtypes and devices, but no values. Whatever would read a value on the host raises, and so does whatever mixes
devices. CPU tensors keep their values: code for a GPU may well compute on the CPU.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_GPU, _META = torch.device("cuda:0"), torch.device("meta")
_aten = torch.ops.aten
_Generator = torch.Generator  # FakeGenerator takes its place in the `with` block of `fake_gpu`


class SynchronisesError(Exception):
    """The host waits for the GPU."""


class MixedDevicesError(Exception):
    """An operation gets a GPU tensor, and a tensor or a generator of the CPU."""


class FakeGenerator(torch.Generator):
    """A generator of any device. Its states are those of a generator on the CPU, since fake tensors have no values."""

    def __new__(cls, device: torch.device | str = "cpu") -> "FakeGenerator":
        generator = super().__new__(cls)
        generator._device = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        """Its device."""
        return self._device


class _PythonCalls(TorchFunctionMode):
    """Lets GPU tensors say that they are on a GPU, and takes 'cuda' for the device that PyTorch's own code sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.is_cuda.__get__:
            return _on_gpu(args[0])
        if func == torch.Tensor.is_cpu.__get__:
            return args[0].device.type == "cpu"
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {name: _seen(value) for name, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == _META:  # PyTorch copies in this way, too
            return func(*args, **(kwargs | {"device": "cpu"})).to(_META)
        result = func(*(_seen(value) for value in args), **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(result, Tensor) and generator.device.type != result.device.type:
            raise MixedDevicesError(f"{func}: the generator is on {generator.device}, the tensor on {result.device}")
        return result


class FakeGpu(FakeTensorMode):
    """Runs operations with GPU tensors as fake ones, the others as they are, and checks what moves between the two.

    To PyTorch's own code GPU tensors are on the device 'meta', since autograd does not run for a GPU that is not there.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._is_asynchronous = False

    @contextlib.contextmanager
    def asynchronous(self) -> Iterator[None]:
        """Refuse copies to the GPU that wait for it. They are allowed while environments and networks are built."""
        self._is_asynchronous = True
        try:
            yield
        finally:
            self._is_asynchronous = False

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; called by PyTorch."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return _seen(args[0].fake_device)
        if kwargs.get("device") == _META:
            kwargs["device"] = _GPU
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        creates_on_gpu = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not creates_on_gpu and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _aten._to_copy.default:
            device = kwargs.get("device")
            self._check_copy(func, tensors[0], device.type if device else tensors[0].device.type, kwargs)
        elif func is _aten.copy_.default:
            non_blocking = len(args) > 2 and args[2]
            self._check_copy(func, tensors[1], tensors[0].device.type, {"non_blocking": non_blocking} | kwargs)
        elif len({tensor.device.type for tensor in tensors if tensor.dim() or _on_gpu(tensor)}) > 1:
            raise MixedDevicesError(f"{func}: {[f'{list(tensor.shape)} on {tensor.device}' for tensor in tensors]}")
        args, kwargs = tree_map(lambda leaf: None if isinstance(leaf, _Generator) else leaf, (args, kwargs))
        return super().dispatch(func, types, args, kwargs)

    def _check_copy(self, func: Any, source: Tensor, target: str, kwargs: dict[str, Any]) -> None:
        """Raise SynchronisesError if a copy waits for the GPU.

        Args:
            func: The operation, for the message.
            source: What is copied.
            target: Type of the device that it is copied to.
            kwargs: The operation's keyword arguments.
        """
        if _on_gpu(source) and target == "cpu":
            raise SynchronisesError(f"{func}: a copy from the GPU waits for it")
        waits = not _on_gpu(source) and target == "cuda" and not kwargs.get("non_blocking")
        if waits and self._is_asynchronous:
            raise SynchronisesError(f"{func}: a copy to the GPU waits for it without non_blocking=True")


def _on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is on the GPU that is not there."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _seen(value: Any) -> Any:
    """The device that PyTorch's own code sees, if the value is a device or its name; otherwise the value."""
    is_gpu = isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda"
    return _META if is_gpu else value


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Let device 'cuda' be a GPU that is not there."""
    dispatch = FakeTensor.__torch_dispatch__

    def see_meta(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return _seen(args[0].fake_device)
        return dispatch(func, types, args, kwargs or {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensor, "__torch_dispatch__", classmethod(see_meta))
        patch.setattr(torch, "Generator", FakeGenerator)
        patch.setattr(torch.cuda, "init", lambda: None)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "default_generators", (FakeGenerator("cuda"),))
        with FakeGpu() as gpu, _PythonCalls():
            yield gpu
