"""Resolve the configured device to one of this machine."""

from collections.abc import Callable
from functools import cache

from qllm_exp.errors import UserError

DeviceResolver = Callable[[str], str]  # from a configured device to the device of the machine that will train the run


def resolve_device(device: str) -> str:
    """Return the device to train on: 'auto' becomes 'cuda' if PyTorch sees a GPU, else 'cpu'.

    Args:
        device: auto, cpu, cuda or cuda:INDEX.

    Raises:
        UserError: the machine does not have that GPU.
    """
    gpu_count = _gpu_count()
    if device == "auto":
        return "cuda" if gpu_count else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= gpu_count:
        raise UserError(
            f"device={device}: PyTorch sees {gpu_count} GPUs on this machine. Use device=auto or device=cpu."
        )
    return device


@cache
def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
